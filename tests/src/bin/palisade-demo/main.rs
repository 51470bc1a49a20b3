//! A node before and after the agent: who reaches whom, the policies, what was refused and why, and the tables.
//! `cargo xtask demo` builds everything and runs this. Ctrl-C at any moment removes what was made.

mod scene;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use palisade_tests::lab::agent::palisade_command;
use palisade_tests::lab::{Agent, AgentOptions, Netns, Node, Outcome, programs};
use scene::Scene;

const USAGE: &str = "usage: cargo xtask demo [--keep]\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = match &arguments[..] {
        [] => false,
        [keep] if keep == "--keep" => true,
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match demo(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool) -> Result<()> {
    let start = Instant::now();
    heading("A node as Flannel lays it out, with pods and a folder of manifests");
    let scene = Scene::set_up()?;
    scene.describe();

    heading("Who reaches whom before (IPv4 and IPv6)");
    let before = scene.ask_everything();
    println!("{}", table::reachability(&scene, &before));

    heading("The agent starts on the folder");
    let agent = Agent::start(&scene.lab, &scene.node, &AgentOptions::manifests(&scene.manifests.folder))?;
    println!("palisade agent --manifests {} ... is ready: no policy yet", scene.manifests.folder.display());

    heading("The policies");
    scene.print_policies();
    let last = scene.last_answer(|| scene.write_policies())?;
    println!(
        "The last packet that they forbid got through {:.1} ms after they were written.",
        1000.0 * last.as_secs_f64()
    );

    heading("Who reaches whom after");
    let after = scene.settled(Duration::from_secs(5))?;
    println!("{}", table::reachability(&scene, &after));
    println!("{}", verdict(&scene, &after));

    heading("Refused connections, from the agent's log");
    print_refused(&agent)?;

    heading("palisade endpoints");
    show(&scene.node, &["endpoints"], usize::MAX)?;
    heading("palisade maps");
    show(&scene.node, &["maps"], 60)?;

    println!("\nAll this took {:.1} s.", start.elapsed().as_secs_f64());
    if keep { leave(scene, agent) } else { Ok(()) }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Whether the table after is what the policies say.
fn verdict(scene: &Scene, after: &[Outcome]) -> String {
    let wrong = scene.disagreements(after);
    if wrong.is_empty() {
        format!("Every one of the {} answers is what the policies say.", after.len())
    } else {
        format!("NOT what the policies say:\n  {}", wrong.join("\n  "))
    }
}

/// The agent reads the kernel's events in its own time; a moment later they are in the log.
fn print_refused(agent: &Agent) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let log = agent.log_text();
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("refused")).collect();
        if !refused.is_empty() || Instant::now() > end {
            for line in refused.iter().take(12) {
                println!("{line}");
            }
            if refused.len() > 12 {
                println!("... and {} more", refused.len() - 12);
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn show(node: &Node, arguments: &[&str], lines_max: usize) -> Result<()> {
    let output = palisade_command(node, arguments)?.output().context("cannot run palisade")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().take(lines_max) {
        println!("{line}");
    }
    let more = text.lines().count().saturating_sub(lines_max);
    if more > 0 {
        println!("... and {more} more lines");
    }
    if !output.status.success() {
        println!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// Leaves everything as it is, with commands to play with.
fn leave(scene: Scene, agent: Agent) -> Result<()> {
    let enter = |netns: &Netns| format!("nsenter --net={}", netns.path().display());
    let (helper, program) = (programs::helper()?, programs::agent()?);
    let (from, to) = scene.example();
    heading("Left standing; some commands to play with");
    println!("ask from a pod:     {} {} connect tcp {to}", enter(from), helper.display());
    println!("change policies in  {}", scene.manifests.folder.display());
    println!("the agent's log:    tail -f {}", agent.log.display());
    for command in ["endpoints", "maps"] {
        println!("{command:19} {} {command} --pin-dir {}", program.display(), scene.node.pin_dir.display());
    }
    println!("the node's network: {} ip addr", enter(&scene.node.netns));
    agent.keep();
    println!("remove everything:  {}", scene.keep()?);
    Ok(())
}
