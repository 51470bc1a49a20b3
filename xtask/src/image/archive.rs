//! tar archives and compressed layers of which every byte follows from what goes in. Does no I/O.

use std::io::{self, Write as _};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative, and less than 100 bytes long.
    pub path: String,
    pub mode: u32,
    pub contents: Vec<u8>,
}

/// The layer of an image.
#[derive(Debug)]
pub struct Layer {
    /// gzip of a tar archive.
    pub compressed: Vec<u8>,
    /// Digest of the archive.
    pub diff_id: String,
    /// Bytes of the archive.
    pub size: usize,
}

/// Files by path, owned by 0:0. `time`: seconds since 1970, every file's.
pub fn tar(mut files: Vec<File>, time: u64) -> io::Result<Vec<u8>> {
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let mut archive = Builder::new(Vec::new());
    for file in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(file.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(file.contents.len() as u64);
        archive.append_data(&mut header, &file.path, file.contents.as_slice())?;
    }
    archive.into_inner()
}

pub fn layer(files: Vec<File>, time: u64) -> io::Result<Layer> {
    let archive = tar(files, time)?;
    // Neither a name nor a time of its own.
    let mut compressed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    compressed.write_all(&archive)?;
    Ok(Layer { compressed: compressed.finish()?, diff_id: digest(&archive), size: archive.len() })
}

/// As in `sha256:e3b0…`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn files() -> Vec<File> {
        let file = |path: &str, mode, contents: &[u8]| File { path: path.into(), mode, contents: contents.into() };
        vec![file("palisade-cni", 0o755, b"plugin"), file("palisade", 0o755, &[7; 5000]), file("list", 0o644, b"")]
    }

    #[test]
    fn unpacks_to_what_went_in() {
        let layer = layer(files(), 12).expect("memory can be written to");
        let mut archive = Vec::new();
        GzDecoder::new(layer.compressed.as_slice()).read_to_end(&mut archive).expect("it is gzip");
        assert_eq!((digest(&archive), archive.len()), (layer.diff_id, layer.size));
        let mut found = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().expect("it is tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            let header = entry.header().clone();
            assert_eq!(header.entry_type(), EntryType::Regular);
            assert_eq!((header.uid().ok(), header.gid().ok(), header.mtime().ok()), (Some(0), Some(0), Some(12)));
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).expect("contents");
            found.push(File { path, mode: header.mode().expect("a mode"), contents });
        }
        let mut expected = files();
        expected.sort_by(|one, other| one.path.cmp(&other.path));
        assert_eq!(found, expected);
    }

    #[test]
    fn order_of_files_is_no_matter() {
        let mut reversed = files();
        reversed.reverse();
        let one = layer(files(), 0).expect("memory can be written to");
        let other = layer(reversed, 0).expect("memory can be written to");
        assert_eq!(one.compressed, other.compressed);
        assert_ne!(one.compressed, layer(files(), 1).expect("memory can be written to").compressed);
    }

    #[test]
    fn digest_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), expected);
    }
}
