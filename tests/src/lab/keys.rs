//! Keys, certificates and kubeconfigs of a control plane, by openssl.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lab;
use super::control_plane::PORT;

/// Signed by the lab's authority.
pub(super) const SIGNED: &[&str] =
    &["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];

/// An authority, the server's and an administrator's certificates, and the key that signs accounts' tokens.
pub(super) fn write_keys(folder: &Path) -> Result<()> {
    let [v4, v6] = Lab::UNDERLAY;
    request(folder, "ca", "/CN=lab", &[])?;
    request(folder, "account", "/CN=account", &[])?;
    let names = format!("subjectAltName=IP:{v4},IP:{v6},IP:127.0.0.1,IP:10.96.0.1,DNS:localhost");
    request(folder, "server", "/CN=kube-apiserver", &[SIGNED, &["-addext", &names]].concat())?;
    request(folder, "admin", "/O=system:masters/CN=admin", SIGNED)
}

/// NAME.key and NAME.crt.
pub(super) fn request(folder: &Path, name: &str, subject: &str, more: &[&str]) -> Result<()> {
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["req", "-x509", "-days", "30"]).args(curve);
    command.args(["-keyout", &key, "-out", &certificate, "-subj", subject]).args(more);
    let output = command.output().context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub(super) fn kubeconfig_of(folder: &Path, user: &str) -> Value {
    let [address, _] = Lab::UNDERLAY;
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{address}:{PORT}"),
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": folder.join(format!("{user}.crt")),
            "client-key": folder.join(format!("{user}.key")),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
    })
}
