//! How the API server is reached: by a kubeconfig or as a pod, through a proxy if there is one, as a bearer of a token that may change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use kube::client::{Body, ClientBuilder};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{Layer, Service};

use super::contact::Contact;
use super::wire::SILENCE_MAX;

const CONNECT_TIME: Duration = Duration::from_secs(10);

/// A client for the cluster of a kubeconfig, or for the one whose pod this is.
///
/// # Errors
/// The kubeconfig, or the account that the pod was given, cannot be read, or names a proxy that cannot be used.
pub async fn client(kubeconfig: Option<&Path>, contact: &Contact) -> anyhow::Result<Client> {
    let mut own_proxy = None;
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong = || format!("kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(wrong)?;
            own_proxy = proxy_url(&kubeconfig);
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(wrong)?
        }
        None => Config::incluster().context("the account that a cluster gives its pods")?,
    };
    if config.accept_invalid_certs {
        tracing::warn!("insecure-skip-tls-verify: whoever answers in the API server's place is believed");
    }
    config.connect_timeout = Some(CONNECT_TIME);
    // Longer than a watch may be silent: that is seen first, and told better.
    config.read_timeout = Some(SILENCE_MAX + CONNECT_TIME);
    config.reset_reader_on_write = true;
    // A failure is told, and waited after, where it is seen.
    config.default_retry = false;
    config.proxy_url = proxy(&config.cluster_url, own_proxy.as_deref(), |name| std::env::var(name).ok())?;
    let bearer = Bearer::of(&mut config.auth_info)?;
    let builder = ClientBuilder::try_from(config).context("a client for the API server")?;
    Ok(builder.with_layer(&bearer).with_layer(contact).build())
}

// === Proxies ===

/// Of the cluster of the current context.
fn proxy_url(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == *current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.clone().filter(|url| !url.is_empty())
}

/// As client-go has it: the kubeconfig's proxy-url, whatever else is said; else HTTPS_PROXY (HTTP_PROXY for a server without TLS), unless the
/// server is on this machine or NO_PROXY names it.
///
/// # Errors
/// It is none that can be used. What stands before its `@` is not repeated.
fn proxy(server: &Uri, own: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Uri>> {
    let of_environment = || {
        let either = |upper: &str| variable(upper).or_else(|| variable(&upper.to_lowercase())).unwrap_or_default();
        let no = either("NO_PROXY");
        // The matcher's star stands for names alone.
        if no.split(',').any(|entry| entry.trim() == "*") {
            return None;
        }
        let matcher = Matcher::builder().http(either("HTTP_PROXY")).https(either("HTTPS_PROXY")).no(no);
        matcher.build().intercept(server)?;
        // The matcher's own has lost the password.
        let url = either(if server.scheme_str() == Some("http") { "HTTP_PROXY" } else { "HTTPS_PROXY" });
        Some(if url.contains("://") { url } else { format!("http://{url}") })
    };
    let Some(url) = own.map(str::to_owned).or_else(|| (!is_here(server)).then(of_environment).flatten()) else {
        return Ok(None);
    };
    let Ok(proxy) = url.parse::<Uri>() else { bail!("the proxy for the API server is no URL") };
    match proxy.scheme_str() {
        Some("http" | "https" | "socks5") if proxy.host().is_some() => {
            tracing::info!(host = proxy.host(), port = proxy.port_u16(), "the API server is reached by way of a proxy");
            Ok(Some(proxy))
        }
        scheme => bail!(
            "the proxy for the API server is reached by {:?}, which is none of http, https and socks5",
            scheme.unwrap_or_default()
        ),
    }
}

fn is_here(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

// === Tokens ===

/// Bears the token of a file, which is read anew for every request: whoever rotates it need not tell, and no clock counts.
#[derive(Clone, Debug)]
struct Bearer(Option<Arc<TokenFile>>);

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    /// For as long as the file cannot be read (kubernetes#68164). It is marked as sensitive.
    last: Mutex<HeaderValue>,
}

impl Bearer {
    /// Takes the file over, where that is how the client says who it is.
    fn of(auth: &mut AuthInfo) -> anyhow::Result<Self> {
        if auth.token.is_some() || auth.username.is_some() || auth.auth_provider.is_some() {
            return Ok(Self(None));
        }
        let Some(path) = auth.token_file.take().map(PathBuf::from) else { return Ok(Self(None)) };
        let last = Mutex::new(read_token(&path)?);
        Ok(Self(Some(Arc::new(TokenFile { path, last }))))
    }
}

/// # Errors
/// It cannot be read, or is no token. It is not repeated.
fn read_token(path: &Path) -> anyhow::Result<HeaderValue> {
    let token = fs::read_to_string(path).with_context(|| format!("the token {}", path.display()))?;
    if token.trim().is_empty() {
        bail!("the token {} is empty", path.display());
    }
    let header = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    let mut header = header.with_context(|| format!("{} holds no token", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

impl TokenFile {
    fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read_token(&self.path) {
            Ok(header) => last.clone_from(&header),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the last token that could be read is used"),
        }
        last.clone()
    }
}

impl<S> Layer<S> for Bearer {
    type Service = Bearing<S>;

    fn layer(&self, inner: S) -> Bearing<S> {
        Bearing { inner, bearer: self.clone() }
    }
}

#[derive(Clone, Debug)]
struct Bearing<S> {
    inner: S,
    bearer: Bearer,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Bearing<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Bearer(Some(file)) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, file.header());
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_those_of_client_go() {
        type Case<'a> = (&'a str, Option<&'a str>, &'a [(&'a str, &'a str)], Result<Option<&'a str>, &'a str>);
        let cases: [Case; 16] = [
            ("https://10.96.0.1", None, &[], Ok(None)),
            ("https://10.96.0.1", None, &[("HTTPS_PROXY", "http://proxy:3128")], Ok(Some("http://proxy:3128/"))),
            ("https://10.96.0.1", None, &[("https_proxy", "proxy:3128")], Ok(Some("http://proxy:3128/"))),
            ("https://10.96.0.1", None, &[("HTTP_PROXY", "http://proxy:3128")], Ok(None)),
            ("http://10.96.0.1", None, &[("HTTP_PROXY", "http://proxy:3128")], Ok(Some("http://proxy:3128/"))),
            ("https://10.96.0.1", None, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", "10.96.0.0/12,,.svc")], Ok(None)),
            ("https://10.96.0.1", None, &[("HTTPS_PROXY", "http://p"), ("no_proxy", "*")], Ok(None)),
            ("https://[fd00::1]:6443", None, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", "fd00::/8")], Ok(None)),
            ("https://api.example.com", None, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", "example.com")], Ok(None)),
            (
                "https://notexample.com",
                None,
                &[("HTTPS_PROXY", "https://p"), ("NO_PROXY", "example.com")],
                Ok(Some("https://p/")),
            ),
            ("https://127.0.0.1:6443", None, &[("HTTPS_PROXY", "http://p")], Ok(None)),
            ("https://[::1]:6443", None, &[("HTTPS_PROXY", "http://p")], Ok(None)),
            ("https://localhost", None, &[("HTTPS_PROXY", "http://p")], Ok(None)),
            // What the kubeconfig says holds without exception.
            ("https://127.0.0.1", Some("socks5://s:1080"), &[("NO_PROXY", "*")], Ok(Some("socks5://s:1080/"))),
            ("https://a", None, &[("HTTPS_PROXY", "http://u:secret@p")], Ok(Some("http://u:secret@p/"))),
            ("https://a", Some("ftp://u:secret@p"), &[], Err("reached by \"ftp\"")),
        ];
        for (server, own, variables, expected) in cases {
            let variable =
                |name: &str| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned());
            let found = proxy(&server.parse().expect("a URI"), own, variable);
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.map(|uri| uri.to_string()).as_deref(), expected, "{server} {variables:?}");
                }
                (Err(error), Err(expected)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains(expected) && !error.contains("secret"), "{error}");
                }
                (found, _) => panic!("{server} {variables:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_token_is_read_again_and_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "first\n").expect("it can be written");
        let mut auth = AuthInfo { token_file: Some(path.display().to_string()), ..AuthInfo::default() };
        let bearer = Bearer::of(&mut auth).expect("there is a token");
        assert_eq!(auth.token_file, None);
        let file = bearer.0.clone().expect("it has a file");
        assert_eq!(file.header(), "Bearer first");
        fs::write(&path, "second").expect("it can be written");
        assert_eq!(file.header(), "Bearer second");
        fs::write(&path, "").expect("it can be written");
        assert_eq!(file.header(), "Bearer second");
        fs::remove_file(&path).expect("it is there");
        assert_eq!(file.header(), "Bearer second");
        assert!(!format!("{bearer:?}").contains("second"), "{bearer:?}");
        let mut auth = AuthInfo { token_file: Some(path.display().to_string()), ..AuthInfo::default() };
        assert!(Bearer::of(&mut auth).is_err());
    }
}
