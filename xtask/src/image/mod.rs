//! `cargo xtask image`: the image as an OCI layout and an archive of it, made without a container engine; and
//! `cargo xtask sbom`, the bill of materials that is inside.

pub mod archive;
mod contents;
mod layout;
mod options;
mod reference;
mod sbom;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build::{self, Variant};
use crate::command::{output, step};
use crate::machine::{Machine, Platform};
use crate::paths;
use archive::File;
use contents::{Entry, Origin, PLUGIN, PROGRAM, SBOM, VERSION};
use layout::{Image, Layout, Size};
use options::Options;

/// Bytes of one platform's image as it is pulled.
const SIZE_MAX: usize = 15_000_000;

pub fn image(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let origin = origin(options.source.clone())?;
    let output = options.output.clone().unwrap_or_else(|| paths::target().join("image"));
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let mut images = Vec::new();
    for platform in options.platforms()? {
        images.push(image_for(platform, options.variant, &origin, &output)?);
    }
    let layout = layout::layout(&images, &origin, &options.reference)?;
    let name = options.file_name()?;
    step(&format!("image {}", options.reference), || {
        let folder = output.join(&name);
        write_layout(&layout, &folder)?;
        let file = output.join(format!("{name}.tar"));
        let time = u64::try_from(origin.created).context("the time of creation is before 1970")?;
        fs::write(&file, archive::tar(layout.archived(), time)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(((), format!("{}, {}, {}", layout.digest, folder.display(), file.display())))
    })?;
    layout.sizes.iter().try_for_each(told_size)
}

/// `cargo xtask sbom`.
pub fn sbom(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let origin = origin(options.source.clone())?;
    let output = options.output.clone().unwrap_or_else(|| paths::target().join("image"));
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    for platform in options.platforms()? {
        write_bill(&Machine::of(platform)?, platform, &origin, &output)?;
    }
    Ok(())
}

/// The commit, and when: SOURCE_DATE_EPOCH (seconds since 1970), else the commit's own time, so that the same sources make
/// the same image.
fn origin(source: Option<String>) -> Result<Origin> {
    let created = match env::var("SOURCE_DATE_EPOCH") {
        Ok(given) => given.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?,
        Err(_) => {
            let asked = ["log", "-1", "--format=%ct"];
            let said = output(Command::new("git").args(asked).current_dir(paths::workspace()));
            // Without git there is no time but the first.
            said.ok().and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
        }
    };
    Ok(Origin { revision: build::commit(), source, created })
}

fn image_for(platform: Platform, variant: Variant, origin: &Origin, output: &Path) -> Result<Image> {
    let machine = Machine::of(platform)?;
    let program = build::build_for(&machine, variant)?;
    let plugin = program.with_file_name(PLUGIN.name);
    for (program, entry) in [(&program, PROGRAM), (&plugin, PLUGIN)] {
        says_its_version(&machine, program, entry.name, origin)?;
    }
    let bill = write_bill(&machine, platform, origin, output)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let file = |Entry { name, mode }: Entry, contents| File { path: name.to_owned(), mode, contents };
    let files = vec![file(PROGRAM, read(&program)?), file(PLUGIN, read(&plugin)?), file(SBOM, bill)];
    let time = u64::try_from(origin.created).context("the time of creation is before 1970")?;
    step(&format!("layer for {}", platform.name()), || {
        let layer = archive::layer(files, time)?;
        let outcome = layer.diff_id.clone();
        Ok((Image { platform, layer }, outcome))
    })
}

/// That it starts, and is what it should be. Another machine's programs are run by qemu.
fn says_its_version(machine: &Machine, program: &Path, name: &str, origin: &Origin) -> Result<()> {
    let how = if machine.cross.is_some() { " under qemu" } else { "" };
    step(&format!("{name} --version{how}"), || {
        let mut command = match &machine.cross {
            Some(cross) => Command::new(&cross.emulator),
            None => Command::new("env"),
        };
        let said = output(command.arg(program).arg("--version"))?;
        let expected = format!("{name} {VERSION} ({})", origin.revision);
        ensure!(said.trim_end() == expected, "it says `{}` and should say `{expected}`", said.trim_end());
        Ok(((), said.trim_end().to_owned()))
    })
}

/// Beside the image, for whoever does not want to unpack it; returned as it is inside.
fn write_bill(machine: &Machine, platform: Platform, origin: &Origin, output: &Path) -> Result<Vec<u8>> {
    let place = output.join(format!("palisade-linux-{}.cdx.json", platform.name()));
    step(&format!("bill of materials for {}", platform.name()), || {
        let bill = sbom::bill(machine, origin)?;
        fs::write(&place, &bill).with_context(|| format!("cannot write {}", place.display()))?;
        Ok((bill, place.display().to_string()))
    })
}

/// In one step, so that no folder is a mixture of two images.
fn write_layout(layout: &Layout, folder: &Path) -> Result<()> {
    let part = folder.with_extension("part");
    for old in [&part, folder] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    for (path, contents) in &layout.files {
        let place = part.join(path);
        fs::create_dir_all(place.parent().context("it lies in a folder")?)?;
        fs::write(&place, contents).with_context(|| format!("cannot write {}", place.display()))?;
    }
    fs::rename(&part, folder).with_context(|| format!("cannot write {}", folder.display()))
}

/// An image that is too large is there to be looked at, and a failure.
fn told_size(size: &Size) -> Result<()> {
    let Size { platform, compressed, uncompressed } = size;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    println!(
        "linux/{}: {:.2} MB compressed, {:.2} MB unpacked",
        platform.name(),
        megabytes(*compressed),
        megabytes(*uncompressed)
    );
    ensure!(
        *compressed <= SIZE_MAX,
        "the image for {} is {compressed} bytes, and more than {SIZE_MAX} is too large",
        platform.name()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_is_a_failure() {
        let size = |compressed| Size { platform: Platform::Amd64, compressed, uncompressed: compressed };
        assert!(told_size(&size(SIZE_MAX)).is_ok());
        assert!(told_size(&size(SIZE_MAX + 1)).is_err());
    }

    #[test]
    fn what_an_earlier_run_left_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("palisade-linux-amd64");
        let layout = |path: &str| Layout {
            files: [(path.to_owned(), b"contents".to_vec())].into(),
            digest: String::new(),
            sizes: Vec::new(),
        };
        write_layout(&layout("blobs/sha256/old"), &place).expect("it can be written");
        write_layout(&layout("blobs/sha256/new"), &place).expect("it can be written");
        assert_eq!(fs::read(place.join("blobs/sha256/new")).expect("it is there"), b"contents");
        assert!(!place.join("blobs/sha256/old").exists());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
