//! The project's own commands, each in a file of its own. Run as `cargo xtask COMMAND`.

mod bench;
mod build;
mod cluster;
mod command;
mod fuzz;
mod image;
mod lab;
mod machine;
mod manifests;
mod mutants;
mod paths;
mod prove;
mod setup;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND [ARGUMENTS]

  setup    sets up what is missing: rust-src, bpf-linker, packages, a C++ compiler, the Go-built parts of the lab
  build    the kernel programs and the static binary target/release/palisade; `--layout-test`: an agent of another version, for tests
  test     everything that must pass, from formatting to the live lab; `test --list` names the stages,
           `test STAGE…` runs only these
  demo     a node in network namespaces before and after the agent; `--keep` leaves it standing
  cluster  whole nodes with kubelet, containerd, Flannel and kube-proxy on this machine, Palisade installed in them, and what is tried
           there: `--help` says what; `--keep` leaves them standing, `cluster down` removes them (docs/cluster.md)
  fuzz     arbitrary input before parser, decision function and door: `fuzz [TARGET…] [--seconds N] [--keep]`;
           `--keep` puts the fewest inputs that lead everywhere into tests/fuzz/corpus
  prove    random cases before three judges: `--cases N --seed S [--loaded N] [--threads T]`; `--help` says more
  bench    speed; without names all of it: `in-kernel`, what a packet costs; `scale`, how that grows with rules, pods and
           ports; `throughput`, what a pod gets through with an agent and without (`connections`: new ones alone);
           `policy`, how soon one holds; `start`, how soon an agent enforces, and its size;
           `commands`, how long those take that show something
  image    the image, as an OCI layout and an archive of it in target/image: `--platform linux/amd64|linux/arm64|all`,
           `--tag NAME:TAG`, `--output DIR`, `--source URL` for the label (docs/image.md)
  sbom     only the bill of materials that is in the image: `--platform`, `--output`
  manifests
           deploy/*.yaml, rendered from the Helm chart deploy/helm/palisade
  mutants  mutation testing of compile, tables, parse and decide: `--file F`, `--sample N` (docs/mutants.md)
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_str() {
        "setup" => setup::all(),
        "build" if rest == ["--layout-test"] => build::build(build::Variant::LayoutTest).map(drop),
        "build" => build::build(build::Variant::Palisade).map(drop),
        "test" => test::run_test(&rest),
        "cluster" => cluster::cluster(&rest),
        "demo" => lab::run_program("palisade-demo", &rest),
        "fuzz" => fuzz::fuzz(&rest),
        "prove" => prove::prove(&rest),
        "bench" => bench::bench(&rest),
        "image" => image::image(&rest),
        "sbom" => image::sbom(&rest),
        "manifests" => manifests::write(),
        "mutants" => mutants::mutants(&rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
