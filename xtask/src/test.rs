//! Everything that must pass. CI runs this and nothing else; each stage can be run alone by its name.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::build::Variant;
use crate::command::{output, run, step};
use crate::machine::Machine;
use crate::{build, fuzz, manifests, paths, setup};

struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<()>,
}

/// The cheapest first, so that a slip is told soon.
const STAGES: &[Stage] = &[
    Stage { name: "fmt", about: "formatting", run: fmt },
    Stage { name: "clippy", about: "lints of every crate, the kernel programs included", run: clippy },
    Stage { name: "unit", about: "tests that need neither root nor set-up", run: unit },
    Stage { name: "deploy", about: "the Helm chart, and the manifests made from it", run: manifests::check },
    Stage { name: "fuzz", about: "libFuzzer, a fixed number of inputs for each target", run: fuzz::bounded },
    Stage {
        name: "build",
        about: "the kernel programs and the static agent, and those of another version",
        run: build,
    },
    Stage { name: "live", about: "tests in the kernel, in the lab and against a real API server (root)", run: live },
    Stage {
        name: "cluster",
        about: "a real node, where `cargo xtask cluster` has built its parts before (root)",
        run: real_node,
    },
];

pub fn run_test(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => run_stages(&STAGES.iter().collect::<Vec<_>>()),
        [list] if list == "--list" => {
            for stage in STAGES {
                println!("{:8}{}", stage.name, stage.about);
            }
            Ok(())
        }
        names => run_named(names),
    }
}

fn run_stages(stages: &[&Stage]) -> Result<()> {
    let mut times = Vec::new();
    for stage in stages {
        println!("\n==== {}: {}", stage.name, stage.about);
        let start = Instant::now();
        (stage.run)()?;
        times.push(format!("{} {:.0} s", stage.name, start.elapsed().as_secs_f64()));
    }
    println!("\n==== all passed: {}", times.join(", "));
    Ok(())
}

fn run_named(names: &[String]) -> Result<()> {
    let mut chosen = Vec::new();
    for name in names {
        let Some(stage) = STAGES.iter().find(|stage| stage.name == name) else {
            bail!("there is no stage `{name}`; `cargo xtask test --list` names them");
        };
        chosen.push(stage);
    }
    run_stages(&chosen)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(paths::workspace()).args(arguments);
    command
}

fn fmt() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let features = "palisade/live,palisade-tests/live";
    run(&mut cargo(&["clippy", "--quiet", "--all-targets", "--features", features, "--", "-D", "warnings"]))?;
    run(build::ebpf_cargo(&Machine::this()?, "clippy")
        .args(["--quiet", "--release", "--bin", "palisade", "--target-dir"])
        .arg(paths::target().join("bpf"))
        .args(["--", "-D", "warnings"]))
}

/// What `tests/tests` has for neither root nor set-up is left to `live`, which runs it all; so nothing is built twice.
fn unit() -> Result<()> {
    let object = kernel_programs()?;
    run(&mut cargo(&["test", "--quiet", "--package", "palisade-common", "--package", "xtask"]))?;
    run(cargo(&["test", "--quiet"]).args(TESTED).args(["--lib", "--bins"]).env(OBJECT_VARIABLE, object))
}

/// One set of packages and features for every stage, or cargo would build them anew for each.
const TESTED: [&str; 6] =
    ["--package", "palisade", "--package", "palisade-tests", "--features", "palisade/live,palisade-tests/live"];

fn build() -> Result<()> {
    build::build(Variant::Palisade)?;
    build::build(Variant::LayoutTest).map(drop)
}

fn live() -> Result<()> {
    let user = output(Command::new("id").arg("-u"))?;
    ensure!(user.trim() == "0", "the live tests load programs and make network namespaces: run this as root");
    let object = kernel_programs()?;
    setup::lab()?;
    setup::control_plane()?;
    setup::kubectl()?;
    setup::services()?;
    setup::prometheus()?;
    // Cargo builds the helpers with the tests. One at a time: labs can live side by side, but two cores cannot keep the deadlines of many.
    run(cargo(&["test", "--no-fail-fast"])
        .args(TESTED)
        .args(["--test", "*", "--", "--test-threads=1"])
        .env(OBJECT_VARIABLE, object))
}

fn real_node() -> Result<()> {
    if !setup::cluster_is_built()? {
        println!("passed over: the parts of a node were not built yet (`cargo xtask cluster` builds them)");
        return Ok(());
    }
    // Another program, as it ends in that of the cluster.
    let arguments = ["xtask", "cluster", "--jobs=10", "--uninstall"];
    run(Command::new("cargo").current_dir(paths::workspace()).args(arguments))
}

/// Given to every stage that runs tests, or cargo would build the agent anew for each. Plain `cargo test` gives none.
const OBJECT_VARIABLE: &str = "PALISADE_EBPF_OBJECT";

fn kernel_programs() -> Result<PathBuf> {
    let machine = Machine::this()?;
    step("kernel programs", || Ok((build::kernel_programs(&machine, Variant::Palisade)?, "built".into())))
}
