//! `cargo xtask cluster`: builds what a cluster of whole nodes is made of, packs its images, and leaves the rest to a program of the tests
//! crate (tests/src/cluster).

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::command::{output, step};
use crate::image::archive::{self, File};
use crate::image::image;
use crate::lab::build_helpers;
use crate::machine::Platform;
use crate::{build, paths, setup};

/// Images that pods of the cluster are made of: file, name, entrypoint, arguments.
const IMAGES: [(&str, &str, &str, &[&str]); 2] = [
    ("pause", "registry.k8s.io/pause:3.10.2", "/pause", &[]),
    // The name that the end-to-end tests of this release ask for.
    ("agnhost", "registry.k8s.io/e2e-test-images/agnhost:2.66.1", "/agnhost", &["pause"]),
];

/// The second version, which the DaemonSet is rolled to.
const OTHER: &str = "palisade:layout-test";

pub fn cluster(arguments: &[String]) -> Result<()> {
    ensure!(output(Command::new("id").arg("-u"))?.trim() == "0", "nodes are made of namespaces: run this as root");
    let asked = |flag: &str| arguments.iter().any(|argument| argument.split('=').next() == Some(flag));
    let folder = paths::target().join("cluster");
    let images = folder.join("images");
    if !arguments.iter().any(|argument| argument == "down" || argument == "--help") {
        build::build(build::Variant::Palisade)?;
        setup::lab()?;
        setup::control_plane()?;
        setup::services()?;
        setup::cluster()?;
        if asked("--e2e") {
            setup::e2e()?;
        }
        if arguments.iter().any(|argument| argument == "chart" || argument == "--install=chart") {
            setup::chart()?;
        }
        if asked("--move-from") {
            setup::kube_router()?;
        }
        fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
        for (name, reference, entrypoint, arguments) in IMAGES {
            let archive = images.join(format!("{name}.tar"));
            step(&format!("image {reference}"), || pack(&archive, name, reference, entrypoint, arguments))?;
        }
        palisade(&images.join("palisade.tar"), &folder.join("palisade"), &[])?;
        if asked("--roll") {
            let other = ["--layout-test", "--tag", OTHER];
            palisade(&images.join("palisade-layout-test.tar"), &folder.join("palisade-layout-test"), &other)?;
        }
    }
    build_helpers()?;
    let mut command = Command::new(paths::target().join("debug/palisade-cluster"));
    command.args(arguments).env("PALISADE_CLUSTER", &folder).env("PALISADE_DEPLOY", paths::workspace().join("deploy"));
    // In our place, so that a signal reaches the program that has something to clean up.
    Err(command.exec()).context("cannot run palisade-cluster")
}

/// The agent's image, as `cargo xtask image` makes it, under a name that does not depend on the machine.
fn palisade(archive: &Path, folder: &Path, more: &[&str]) -> Result<()> {
    let folder_text = folder.to_str().context("the target folder's name is UTF-8")?;
    let arguments = [&["--output", folder_text], more].concat();
    image(&arguments.into_iter().map(str::to_owned).collect::<Vec<_>>())?;
    let found = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut archives: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|extension| extension == "tar")).collect();
    ensure!(archives.len() == 1, "{} holds archives of several images", folder.display());
    let made = archives.remove(0);
    let same = archive.exists() && fs::read(archive)? == fs::read(&made)?;
    if !same {
        fs::copy(made, archive)?;
    }
    Ok(())
}

/// An archive as `docker save` writes it, of one static program.
fn pack(archive: &Path, name: &str, reference: &str, entrypoint: &str, arguments: &[&str]) -> Result<((), String)> {
    let program = paths::target().join("lab/kubernetes").join(name);
    let (made, built) = (fs::metadata(archive).and_then(|file| file.modified()), fs::metadata(&program)?.modified()?);
    if made.is_ok_and(|made| made > built) {
        return Ok(((), "present".into()));
    }
    let text = |path: &str, text: &str| File { path: path.into(), mode: 0o644, contents: text.into() };
    let layer = archive::tar(
        vec![
            File { path: name.into(), mode: 0o755, contents: fs::read(&program)? },
            text("etc/passwd", "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n"),
            text("etc/group", "root:x:0:\nnobody:x:65534:\n"),
            // Programs expect the folder.
            text("tmp/empty", ""),
        ],
        0,
    )?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let configuration = json!({
        "architecture": Platform::of_triple(host.trim())?.name(),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [archive::digest(&layer)]},
        "config": {"Entrypoint": [entrypoint], "Cmd": arguments, "Env": ["PATH=/"], "WorkingDir": "/"},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    let file = |path: &str, contents: Vec<u8>| File { path: path.into(), mode: 0o644, contents };
    let files = vec![
        file("config.json", configuration.to_string().into_bytes()),
        file("layer.tar", layer),
        file("manifest.json", manifest.to_string().into_bytes()),
    ];
    let part = archive.with_extension("part");
    fs::write(&part, archive::tar(files, 0)?)?;
    fs::rename(&part, archive)?;
    Ok(((), format!("packed, {}", archive.display())))
}
