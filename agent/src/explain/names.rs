//! Who is meant: names as people type them for kubectl, and what is known of whom they name.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::facts::{NamedPort, ObjectName, PodFacts, ServiceFacts, ServicePort};
use crate::index::Index;

/// Somebody, by name or address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    Address(IpAddr),
    Pod(ObjectName),
    /// Every pod of a Deployment and its like.
    Workload(Workload, ObjectName),
    Service(ObjectName),
    /// The node's own processes.
    Node,
}

/// What makes pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
}

/// What is known of somebody. A pod that has finished is nobody any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub pods: Vec<KnownPod>,
    pub services: Vec<KnownService>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPod {
    pub name: ObjectName,
    pub node: Option<String>,
    /// It has its node's addresses, and no policy holds for it.
    pub host_network: bool,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownService {
    pub name: ObjectName,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// `None`: without a selector; whom it stands for is somebody else's doing.
    pub backends: Option<Vec<KnownPod>>,
}

/// How kubectl lets types be written.
const TYPES: &[(&[&str], Type)] = &[
    (&["pod", "pods", "po"], Type::Pod),
    (&["service", "services", "svc"], Type::Service),
    (&["deployment", "deployments", "deploy", "deployment.apps"], Type::Workload(Workload::Deployment)),
    (&["replicaset", "replicasets", "rs", "replicaset.apps"], Type::Workload(Workload::ReplicaSet)),
    (&["statefulset", "statefulsets", "sts", "statefulset.apps"], Type::Workload(Workload::StatefulSet)),
    (&["daemonset", "daemonsets", "ds", "daemonset.apps"], Type::Workload(Workload::DaemonSet)),
    (&["job", "jobs", "job.batch"], Type::Workload(Workload::Job)),
];

#[derive(Clone, Copy)]
enum Type {
    Pod,
    Service,
    Workload(Workload),
}

impl Reference {
    /// An address, `node`, `NAME`, `NAMESPACE/NAME`, `TYPE/NAME` or `TYPE/NAMESPACE/NAME`; `namespace` is that of names without one.
    ///
    /// # Errors
    ///
    /// A sentence saying what is meant.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let typed = |word: &str| TYPES.iter().find(|(words, _)| words.contains(&word)).map(|(_, what)| *what);
        let words: Vec<&str> = text.split('/').collect();
        if words.iter().any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
            return Err(format!(
                "{text:?} is no name: it is NAMESPACE/NAME, TYPE/NAME as for kubectl, an address or `node`"
            ));
        }
        match words[..] {
            ["node"] => Ok(Self::Node),
            [name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            [first, name] => match typed(first) {
                Some(what) => Ok(what.named(ObjectName::new(namespace, name))),
                None => Ok(Self::Pod(ObjectName::new(first, name))),
            },
            [first, namespace, name] => match typed(first) {
                Some(what) => Ok(what.named(ObjectName::new(namespace, name))),
                None => Err(format!("{first:?} is no type of {text:?}: pod, svc, deploy, sts, ds, rs or job")),
            },
            _ => Err(format!("{text:?} has too many parts: it is NAMESPACE/NAME, TYPE/NAME or TYPE/NAMESPACE/NAME")),
        }
    }
}

impl Type {
    fn named(self, name: ObjectName) -> Reference {
        match self {
            Self::Pod => Reference::Pod(name),
            Self::Service => Reference::Service(name),
            Self::Workload(workload) => Reference::Workload(workload, name),
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Workload(workload, name) => write!(f, "{} {name}", format!("{workload:?}").to_lowercase()),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Node => f.write_str("the node"),
        }
    }
}

/// What the index knows of somebody; pods sorted by name.
pub fn find(index: &Index, reference: &Reference) -> Known {
    let mut known = Known::default();
    let pods_of = |namespace: &str| {
        let pods = index.namespace(namespace).into_iter().flat_map(|namespace| &namespace.pods);
        pods.filter_map(|id| Some((*id, index.pod(*id)?))).filter(|(_, pod)| !pod.finished)
    };
    let of = |(id, pod): (crate::index::PodId, &PodFacts)| KnownPod {
        name: pod.name.clone(),
        node: pod.node.as_deref().map(str::to_owned),
        host_network: pod.host_network,
        addresses: distinct(index.addresses(id)),
        ports: pod.ports.iter().cloned().collect(),
    };
    let service = |service: &ServiceFacts| KnownService {
        name: service.name.clone(),
        addresses: service.addresses.clone(),
        ports: service.ports.clone(),
        backends: service.selector.is_some().then(|| {
            let its = pods_of(&service.name.namespace).filter(|(_, pod)| service.selects(pod));
            its.map(of).collect()
        }),
    };
    match reference {
        Reference::Node => {}
        Reference::Address(address) => {
            let claimed = index.claims(*address).iter().filter_map(|id| Some((*id, index.pod(*id)?)));
            known.pods = claimed.map(of).collect();
            let its = index.services().filter(|service| service.addresses.contains(address));
            known.services = its.map(service).collect();
        }
        Reference::Pod(name) => {
            known.pods = pods_of(&name.namespace).filter(|(_, pod)| pod.name == *name).map(of).collect();
        }
        Reference::Workload(workload, name) => {
            let its = pods_of(&name.namespace).filter(|(_, pod)| workload.has_made(&name.name, pod));
            known.pods = its.map(of).collect();
        }
        Reference::Service(name) => {
            known.services = index.services().filter(|service| service.name == *name).map(service).collect();
        }
    }
    known.pods.sort_by(|a, b| a.name.cmp(&b.name));
    known
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

impl Workload {
    /// By the labels that controllers put on their pods, and by how they name them: owners are not kept.
    fn has_made(self, name: &str, pod: &PodFacts) -> bool {
        let label = |key: &str| pod.labels.get(key).map(String::as_str);
        let pod_name = &*pod.name.name;
        let ordinal = || pod_name.rsplit_once('-').filter(|(of, number)| *of == name && number.parse::<u32>().is_ok());
        match self {
            Self::Deployment => {
                label("pod-template-hash").is_some_and(|hash| is_generated(&format!("{name}-{hash}"), pod_name))
            }
            Self::ReplicaSet => label("pod-template-hash").is_some() && is_generated(name, pod_name),
            Self::StatefulSet => label("statefulset.kubernetes.io/pod-name") == Some(pod_name) && ordinal().is_some(),
            Self::DaemonSet => {
                label("controller-revision-hash").is_some()
                    && label("statefulset.kubernetes.io/pod-name").is_none()
                    && is_generated(name, pod_name)
            }
            Self::Job => [label("batch.kubernetes.io/job-name"), label("job-name")].contains(&Some(name)),
        }
    }
}

/// metadata.generateName as the API server completes it (apiserver's pkg/storage/names): five characters, and 63 at most.
fn is_generated(owner: &str, pod: &str) -> bool {
    const KEPT: usize = 58;
    let base = format!("{owner}-");
    let base = base.get(..KEPT).unwrap_or(&base);
    pod.len() == base.len() + 5 && pod.starts_with(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::fixture::index;

    #[test]
    fn as_for_kubectl() {
        let pod = |namespace: &str, name: &str| Reference::Pod(ObjectName::new(namespace, name));
        let parse = |text: &str| Reference::parse(text, "shop");
        assert_eq!(parse("web"), Ok(pod("shop", "web")));
        assert_eq!(parse("ops/web"), Ok(pod("ops", "web")));
        assert_eq!(parse("pod/web"), Ok(pod("shop", "web")));
        assert_eq!(parse("po/ops/web"), Ok(pod("ops", "web")));
        assert_eq!(parse("svc/db"), Ok(Reference::Service(ObjectName::new("shop", "db"))));
        let deployment = Reference::Workload(Workload::Deployment, ObjectName::new("ops", "api"));
        assert_eq!(parse("deployments/ops/api"), Ok(deployment));
        assert_eq!(parse("10.0.0.1"), Ok(Reference::Address("10.0.0.1".parse().expect("an address"))));
        assert_eq!(parse("fd00::1"), Ok(Reference::Address("fd00::1".parse().expect("an address"))));
        assert_eq!(parse("node"), Ok(Reference::Node));
        for wrong in ["", "/web", "ops/", "what/ops/web", "a/b/c/d", "two words"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn pods_of_workloads() {
        let index = index(
            "pod a/api-5d4c-abcde ip=10.0.0.1 pod-template-hash=5d4c
             pod a/api-x-5d4c-abcde ip=10.0.0.2 pod-template-hash=5d4c
             pod a/api-0 ip=10.0.0.3 statefulset.kubernetes.io/pod-name=api-0 controller-revision-hash=x
             pod a/api-fghij ip=10.0.0.4 controller-revision-hash=x
             pod a/run ip=10.0.0.5 job-name=api
             pod a/old ip=10.0.0.6 job-name=api finished
             pod b/api-5d4c-abcde ip=10.0.0.7 pod-template-hash=5d4c",
        );
        let names = |text: &str| {
            let known = find(&index, &Reference::parse(text, "a").expect("a name"));
            known.pods.into_iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("deploy/api"), ["a/api-5d4c-abcde"]);
        assert_eq!(names("rs/api-5d4c"), ["a/api-5d4c-abcde"]);
        assert_eq!(names("sts/api"), ["a/api-0"]);
        assert_eq!(names("ds/api"), ["a/api-fghij"]);
        assert_eq!(names("job/api"), ["a/run"]);
        assert_eq!(names("b/api-5d4c-abcde"), ["b/api-5d4c-abcde"]);
        assert_eq!(names("10.0.0.7"), ["b/api-5d4c-abcde"]);
        assert_eq!(names("old"), [""; 0]);
    }

    #[test]
    fn long_names_are_cut_as_the_api_server_cuts_them() {
        let owner = "o".repeat(60);
        assert!(is_generated(&owner, &format!("{}abcde", "o".repeat(58))));
        assert!(!is_generated(&owner, &format!("{owner}-abcde")));
        assert!(is_generated("web", "web-abcde") && !is_generated("web", "web-abcdef"));
    }

    #[test]
    fn services_with_their_pods() {
        let index = index(
            "pod a/web ip=10.0.0.1,fd00::1 port=http/TCP/8080 app=web
             pod a/other ip=10.0.0.2 app=other
             service a/web ip=10.96.0.1 port=TCP/80/30080/http app=web
             service a/made ip=10.96.0.2 port=TCP/80/0/80",
        );
        let known = find(&index, &Reference::parse("svc/web", "a").expect("a name"));
        let [service] = &known.services[..] else { panic!("{known:?}") };
        let backends = service.backends.as_ref().expect("it has a selector");
        assert_eq!(backends.iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["a/web"]);
        let made = find(&index, &Reference::parse("10.96.0.2", "a").expect("an address"));
        assert_eq!(made.services[0].backends, None);
    }
}
