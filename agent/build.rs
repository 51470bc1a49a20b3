//! Puts the kernel programs into the agent, as the constant `EBPF_OBJECT` of `$OUT_DIR/ebpf_object.rs`.
//!
//! `cargo xtask build` names the object in PALISADE_EBPF_OBJECT. Without it the object is empty, so that building and
//! testing what needs no kernel also needs no set-up; loading the empty object fails.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=PALISADE_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=PALISADE_COMMIT");
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let copy = Path::new(&folder).join("palisade.bpf.o");
    let object = match env::var_os("PALISADE_EBPF_OBJECT") {
        Some(path) => {
            let path = Path::new(&path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(path).unwrap_or_else(|error| panic!("PALISADE_EBPF_OBJECT {}: {error}", path.display()))
        }
        None => Vec::new(),
    };
    fs::write(&copy, object).expect("OUT_DIR can be written to");
    // ELF headers are read in place, so the bytes must be aligned.
    let constant = "/// The kernel programs; empty where the build was given none.\n\
                    pub static EBPF_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/palisade.bpf.o\"));\n";
    fs::write(Path::new(&folder).join("ebpf_object.rs"), constant).expect("OUT_DIR can be written to");
    let commit = env::var("PALISADE_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
    println!("cargo::rustc-env=PALISADE_COMMIT={commit}");
}
