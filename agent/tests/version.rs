//! Both programs say which version and commit they are.

use std::process::Command;

fn said(program: &str) -> String {
    let output = Command::new(program).arg("--version").output().expect("cargo built it");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn version_and_commit_are_said() {
    assert_eq!(said(env!("CARGO_BIN_EXE_palisade")), format!("palisade {}\n", palisade::VERSION));
    assert_eq!(said(env!("CARGO_BIN_EXE_palisade-cni")), format!("palisade-cni {}\n", palisade::VERSION));
    let (version, commit) = palisade::VERSION.split_once(' ').expect("a commit follows");
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(commit.starts_with('(') && commit.ends_with(')') && commit.len() > 2, "{commit}");
}
