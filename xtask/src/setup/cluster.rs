//! The parts of a cluster of whole nodes: Kubernetes' programs and flanneld from Go modules, containerd and runc from the machine's
//! Debian, unpacked and not installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::cross::unpacked;
use super::go::{build, cached, go, modules, place, release_flags};
use crate::command::{output, present, run};

const KUBERNETES: &str = "k8s.io/kubernetes";
const FLANNEL: &str = "github.com/flannel-io/flannel";
/// Of flanneld: the first needs modules that the module proxy does not serve, the second C; the others, which a cluster of this
/// machine does not use, only time.
const LEFT_OUT: [&str; 7] = ["tencentvpc", "udp", "alloc", "extension", "ipip", "ipsec", "wireguard"];

/// kubelet, controller manager, scheduler, kubectl; and what is in the images of agnhost and of every sandbox.
pub fn provide_kubernetes() -> Result<(PathBuf, String)> {
    let module = modules().join("cluster");
    cached("kubernetes", &module, |folder| {
        let flags = release_flags(&module)?;
        for program in ["kubelet", "kube-controller-manager", "kube-scheduler", "kubectl"] {
            build(&module, folder, program, &format!("{KUBERNETES}/cmd/{program}"), &flags)?;
        }
        build(&module, folder, "agnhost", &format!("{KUBERNETES}/test/images/agnhost"), "-s -w")?;
        let sources = output(go(&module).args(["list", "-m", "-f", "{{.Dir}}", KUBERNETES]))?;
        let pause = Path::new(sources.trim()).join("build/pause/linux/pause.c");
        run(Command::new("cc").args(["-Os", "-static", "-DVERSION=cluster", "-o"]).arg(folder.join("pause")).arg(pause))
    })
}

/// Whether the parts that take long to build were built before.
pub fn is_built() -> Result<bool> {
    Ok(place("kubernetes", &modules().join("cluster"))?.exists()
        && place("flannel", &modules().join("flanneld"))?.exists())
}

/// Upstream's end-to-end tests of NetworkPolicy and what runs them in parallel.
pub fn provide_e2e() -> Result<(PathBuf, String)> {
    let module = modules().join("cluster");
    cached("e2e", &module, |folder| {
        build(&module, folder, "ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", "-s -w")?;
        // Vet would look at every package of Kubernetes that is linked in.
        let arguments = ["test", "-c", "-vet=off", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"];
        run(go(&module).args(arguments).arg(folder.join("e2e.test")).arg("./netpol"))
    })
}

/// flanneld and its CNI plugin. The module proxy does not serve the plugin's own repository: it is the one of the CNI plugins' last
/// release that still had it.
pub fn provide_flannel() -> Result<(PathBuf, String)> {
    let module = modules().join("flanneld");
    cached("flannel", &module, |folder| {
        let plugin = "github.com/containernetworking/plugins/plugins/meta/flannel";
        build(&modules().join("flannel-cni"), folder, "flannel", plugin, "-s -w")?;
        let said = output(go(&module).args(["mod", "download", "-json", FLANNEL]))?;
        let known: Value = serde_json::from_str(&said).context("go prints JSON")?;
        let (sources, version) = (field(&known, "Dir")?, field(&known, "Version")?);
        let place = folder.join("source");
        fs::create_dir(&place)?;
        for name in ["go.mod", "go.sum"] {
            fs::copy(module.join(name), place.join(name))?;
        }
        let main = fs::read_to_string(Path::new(sources).join("main.go"))?;
        fs::write(place.join("main.go"), without_backends(&main))?;
        build(&place, folder, "flanneld", ".", &format!("-s -w -X {FLANNEL}/pkg/version.Version={version}"))?;
        Ok(fs::remove_dir_all(place)?)
    })
}

/// Its program with fewer imports, each of which only registers a backend.
fn without_backends(main: &str) -> String {
    let left_out =
        |line: &&str| LEFT_OUT.iter().any(|name| line.trim_end().ends_with(&format!("pkg/backend/{name}\"")));
    main.lines().filter(|line| !left_out(line)).flat_map(|line| [line, "\n"]).collect()
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("go does not say the {name}"))
}

/// The enforcer that k3s has built in.
pub fn provide_kube_router() -> Result<(PathBuf, String)> {
    let module = modules().join("kube-router");
    cached("kube-router", &module, |folder| {
        build(&module, folder, "kube-router", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", "-s -w")
    })
}

/// containerd with its shim and client, and runc: the machine's own where it has them.
pub fn provide_containerd() -> Result<(PathBuf, String)> {
    let programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];
    let link = |folder: &Path, find: &dyn Fn(&str) -> Option<PathBuf>| -> Result<()> {
        for program in programs {
            let found = find(program).with_context(|| format!("there is no {program}"))?;
            let place = folder.join(program);
            if !place.is_symlink() {
                symlink(found, place)?;
            }
        }
        Ok(())
    };
    if programs.iter().all(|program| present(program)) {
        let folder = crate::paths::cache()?.join("containerd-installed");
        fs::create_dir_all(&folder)?;
        let folders = ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];
        link(&folder, &|program| {
            folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
        })?;
        return Ok((folder, "present".into()));
    }
    let packages = ["containerd".to_owned(), "runc".to_owned()];
    let (folder, outcome) = unpacked("containerd", &packages, |folder| {
        let relative = ["root/usr/bin", "root/usr/sbin"];
        link(folder, &|program| {
            let path = relative.iter().map(|place| Path::new(place).join(program));
            path.into_iter().find(|path| folder.join(path).exists())
        })
    })?;
    let said = output(Command::new(folder.join("runc")).arg("--version"));
    ensure!(said.is_ok(), "runc does not run: {said:?}");
    Ok((folder, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_backends_are_left_out_and_nothing_else() {
        let main = "import (\n\t_ \"a/pkg/backend/udp\"\n\t_ \"a/pkg/backend/vxlan\"\n\t\"a/pkg/backend\"\n)\n";
        assert_eq!(without_backends(main), "import (\n\t_ \"a/pkg/backend/vxlan\"\n\t\"a/pkg/backend\"\n)\n");
    }
}
