//! Embeds the kernel programs that `cargo xtask build` has built (environment variable `PALISADE_EBPF_OBJECT`). Without it
//! the object is empty, so that plain `cargo build` and `cargo test` need no set-up; such an agent says so when it starts.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=PALISADE_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=PALISADE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = match env::var_os("PALISADE_EBPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| panic!("PALISADE_EBPF_OBJECT {}: {error}", path.display()))
        }
        None => Vec::new(),
    };
    fs::write(out.join("palisade.bpf.o"), object).expect("OUT_DIR is writable");
    println!("cargo::rustc-env=PALISADE_COMMIT={}", env::var("PALISADE_COMMIT").unwrap_or_default());
}
