//! How the entries of our maps are laid out, in a file for agents of other versions. The maps' own BTF says the same, but the kernel gives
//! it to who has CAP_SYS_ADMIN alone, which an agent does without.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use aya_obj::{Map, Object};
use serde::{Deserialize, Serialize};

use super::btf::{Btf, Leaves};
use crate::kernel::EBPF_OBJECT;
use crate::kernel::pins::{PinDir, maps_folder};
use crate::kernel::sizes::{Sizes, pinned};
use crate::observe::state_dir;

/// The integers of a map's keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Layout {
    pub(super) key: Leaves,
    pub(super) value: Leaves,
}

/// By the map's name.
type Layouts = BTreeMap<String, Layout>;

/// Of the version whose maps are pinned below `maps`, a folder of it: beside the catalog, which goes with the pins at a boot as well.
fn file(maps: &Path) -> anyhow::Result<PathBuf> {
    let version = maps.parent().context("maps are below the folder of a version")?;
    let (root, name) = version.parent().zip(version.file_name()).context("a version's folder is below another")?;
    Ok(state_dir(root).join(format!("{}.types.json", name.to_string_lossy())))
}

/// Says how our maps are laid out, if nobody has: all builds of a version agree.
pub(in crate::kernel) fn keep(pins: &PinDir) -> anyhow::Result<()> {
    let path = file(&maps_folder(pins.root()))?;
    if path.exists() {
        return Ok(());
    }
    let object = Object::parse(EBPF_OBJECT).context("reading the kernel programs")?;
    let layouts = serde_json::to_vec(&layouts(&object)?)?;
    let folder = path.parent().context("the file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let new = path.with_extension("new");
    fs::write(&new, layouts).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("writing {}", path.display()))
}

fn layouts(object: &Object) -> anyhow::Result<Layouts> {
    let bytes = object.btf.as_ref().context("the kernel programs have no BTF")?.to_bytes();
    let btf = Btf::parse(&bytes)?;
    let mut layouts = Layouts::new();
    for (name, map) in &object.maps {
        let Map::Btf(map) = map else { continue };
        // What is not pinned nobody takes over.
        if !pinned(Sizes::default()).iter().any(|(pinned, _)| pinned == name) {
            continue;
        }
        if let (Ok(key), Ok(value)) = (btf.leaves(map.def.btf_key_type_id), btf.leaves(map.def.btf_value_type_id)) {
            layouts.insert(name.clone(), Layout { key, value });
        }
    }
    Ok(layouts)
}

/// How the map at this pin is laid out, as the agent said that made it.
pub(super) fn read(pin: &Path) -> anyhow::Result<Layout> {
    let (maps, name) = pin.parent().zip(pin.file_name()).context("a map is pinned in a folder")?;
    let path = file(maps)?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut layouts: Layouts =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    let name = name.to_string_lossy();
    layouts.remove(&*name).with_context(|| format!("{} says nothing of {name}", path.display()))
}

/// That of a version whose folder of maps this is goes with it.
pub(super) fn forget(maps: &Path) -> anyhow::Result<()> {
    let path = file(maps)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

impl Layout {
    /// Nothing lies outside of keys and values of these sizes (bytes).
    pub(super) fn fitting(self, key_size: usize, value_size: usize) -> anyhow::Result<Self> {
        for (leaves, size) in [(&self.key, key_size), (&self.value, value_size)] {
            let outside = leaves.iter().find(|(_, leaf)| leaf.offset.saturating_add(leaf.size) > size);
            ensure!(outside.is_none(), "{outside:?} is beyond its entry of {size} bytes");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::Leaf;
    use super::*;

    #[test]
    fn what_lies_outside_of_an_entry_is_refused() {
        let leaves = |offset| Leaves::from([("epoch".to_owned(), Leaf { offset, size: 4, signed: false })]);
        let layout = |key, value| Layout { key: leaves(key), value: leaves(value) };
        layout(4, 12).fitting(8, 16).expect("both are inside");
        layout(5, 12).fitting(8, 16).expect_err("the key is longer");
        layout(4, 13).fitting(8, 16).expect_err("the value is longer");
        layout(usize::MAX, 12).fitting(8, 16).expect_err("it is nowhere");
    }

    #[test]
    fn each_version_has_a_file_beside_the_catalog() {
        let path = file(Path::new("/sys/fs/bpf/palisade/v4/maps")).expect("a folder of maps");
        assert_eq!(path, Path::new("/run/palisade/sys-fs-bpf-palisade/v4.types.json"));
    }
}
