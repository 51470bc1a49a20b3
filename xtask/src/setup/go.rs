//! What is built from Go modules (tests/go): libcni with the plugins that Flannel delegates to, etcd and kube-apiserver,
//! kubectl, kube-proxy, and CoreDNS.
//!
//! Everything is built from published modules at the versions of go.mod and go.sum, into a folder of the cache that is
//! named by what it was built from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};
use crate::paths;

const MINOR: u32 = 26;
const PLUGINS: &str = "github.com/containernetworking/plugins/plugins";

pub fn check() -> Result<((), String)> {
    let advice = format!("install Go 1.{MINOR} or newer from https://go.dev/dl and put its bin folder into PATH");
    let version = output(Command::new("go").args(["env", "GOVERSION"])).with_context(|| advice.clone())?;
    let minor = version.trim().strip_prefix("go1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    ensure!(minor.is_some_and(|minor| minor >= MINOR), "this is {}: {advice}", version.trim());
    Ok(((), version.trim().to_owned()))
}

pub fn provide_cni() -> Result<(PathBuf, String)> {
    let module = modules().join("cni");
    cached("cni", &module, |folder| {
        build(&module, folder, "palisade-cni-runner", ".", "-s -w")?;
        for plugin in ["main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"] {
            let name = plugin.rsplit('/').next().expect("a path has a last part");
            build(&module, folder, name, &format!("{PLUGINS}/{plugin}"), "-s -w")?;
        }
        Ok(())
    })
}

pub fn provide_control_plane() -> Result<(PathBuf, String)> {
    if let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        && ["etcd", "kube-apiserver"].iter().all(|program| assets.join(program).exists())
    {
        let outcome = format!("KUBEBUILDER_ASSETS has them: {}", assets.display());
        return Ok((assets, outcome));
    }
    check()?;
    let module = modules().join("controlplane");
    cached("control-plane", &module, |folder| {
        println!("  building etcd and kube-apiserver from their modules (about 8 minutes on 2 cores, once)");
        build(&module.join("etcd"), folder, "etcd", "./cmd/etcd", "-s -w")?;
        let kube = module.join("kube");
        build(&kube, folder, "kube-apiserver", "./cmd/kube-apiserver", &release_flags(&kube)?)
    })
}

/// A folder of its own, as the API server takes minutes and need not be built anew for it.
pub fn provide_kube_proxy() -> Result<(PathBuf, String)> {
    let module = modules().join("controlplane/kube");
    cached("kube-proxy", &module, |folder| {
        build(&module, folder, "kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", &release_flags(&module)?)
    })
}

/// kubectl, and what stands for a kubelet where it asks for a command in a pod. Of the modules that the API server is made of.
pub fn provide_kubectl() -> Result<(PathBuf, String)> {
    let module = modules().join("kubectl");
    cached("kubectl", &module, |folder| {
        for program in ["kubectl", "kubelet-stub"] {
            build(&module, folder, program, &format!("./cmd/{program}"), "-s -w")?;
        }
        Ok(())
    })
}

pub fn provide_dns() -> Result<(PathBuf, String)> {
    let module = modules().join("dns");
    cached("dns", &module, |folder| build(&module, folder, "coredns", ".", "-s -w"))
}

/// What Prometheus makes of our metrics, rules and dashboards.
pub fn provide_promcheck() -> Result<(PathBuf, String)> {
    let module = modules().join("prom");
    cached("prom", &module, |folder| build(&module, folder, "promcheck", ".", "-s -w"))
}

pub fn provide_helm() -> Result<(PathBuf, String)> {
    check()?;
    let module = modules().join("helm");
    cached("helm", &module, |folder| build(&module, folder, "helm", "helm.sh/helm/v3/cmd/helm", "-s -w"))
}

/// Without these a program of Kubernetes does not know which release it is.
pub(super) fn release_flags(module: &Path) -> Result<String> {
    let asked = ["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"];
    let version = output(Command::new("go").args(asked).current_dir(module))?;
    let version = version.trim();
    let minor = version.strip_prefix("v1.").and_then(|rest| rest.split('.').next()).context("an odd version")?;
    let variable = "k8s.io/component-base/version";
    Ok(format!("-s -w -X {variable}.gitVersion={version} -X {variable}.gitMajor=1 -X {variable}.gitMinor={minor}"))
}

pub(super) fn modules() -> PathBuf {
    paths::workspace().join("tests/go")
}

/// The cache's folder for these sources, whether it is there or not.
pub(super) fn place(name: &str, sources: &Path) -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("{name}-{:016x}", fingerprint(sources)?)))
}

/// The same; made by `make` where it is not there yet.
pub(super) fn cached(name: &str, sources: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<(PathBuf, String)> {
    let folder = place(name, sources)?;
    if folder.exists() {
        return Ok((folder, "present".into()));
    }
    let part = folder.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    make(&part)?;
    fs::rename(&part, &folder)?;
    Ok((folder, "built".into()))
}

pub(super) fn build(module: &Path, folder: &Path, name: &str, package: &str, flags: &str) -> Result<()> {
    run(go(module)
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o"])
        .arg(folder.join(name))
        .arg(package))
}

/// In this module, not yet told what to do.
pub(super) fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    // Static, so that the programs also run in bare namespaces; and no workspace of the user's takes part.
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOWORK", "off").env_remove("GOFLAGS");
    command
}

/// FNV-1a over the names and contents of all files: a key of a cache, not a defence.
fn fingerprint(folder: &Path) -> Result<u64> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.strip_prefix(folder).expect("it was found there");
        let contents = fs::read(&file)?;
        for byte in name.to_string_lossy().bytes().chain([0]).chain(contents).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(hash)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
