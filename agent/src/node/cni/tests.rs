use std::fmt::Write as _;

use base64::Engine as _;

use super::*;

/// A file around a result, as libcni writes it for `configuration`.
fn cached(arguments: &str, if_name: &str, configuration: &str, result: &str) -> String {
    let config = base64::engine::general_purpose::STANDARD.encode(configuration);
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"16c8","config":"{config}","ifName":"{if_name}","networkName":"cbr0",
            "cniArgs":{arguments},"capabilityArgs":{{"io.kubernetes.cri.pod-annotations":{{}}}},"result":{result}}}"#
    )
}

const WEB: &str = r#"[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web-1"],
    ["K8S_POD_INFRA_CONTAINER_ID","16c8"],["K8S_POD_UID","b612"]]"#;

const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// The result of KERNEL.md §9, as containerd 1.6, kubelet 1.37 and Flannel leave it.
const RESULT: &str = r#"{"cniVersion":"1.0.0","dns":{},"interfaces":[{"mac":"0e:45:00:00:00:01","name":"cni0"},
    {"mac":"9e:e8:00:00:00:02","name":"veth33a052f9"},
    {"mac":"9a:6f:00:00:00:03","name":"eth0","sandbox":"/var/run/netns/cni-8c5540d3"}],
    "ips":[{"address":"10.244.0.3/24","gateway":"10.244.0.1","interface":2}],"routes":[{"dst":"10.244.0.0/16"}]}"#;

const RESULT_TEXT: &str = "default/web-1 b612; host cni0 0e:45:00:00:00:01; host veth33a052f9 9e:e8:00:00:00:02; \
    pod eth0 9a:6f:00:00:00:03 10.244.0.3/24; bridge cni0";

/// A reading as a line of text.
fn line(reading: &Reading) -> String {
    let CniResult { pod, hosts, sandboxes, bridge } = match reading {
        Reading::Result(result) => result,
        Reading::Foreign => return "foreign".into(),
        Reading::NotYet(_) => return "not yet".into(),
    };
    let mac = |mac: &Option<[u8; 6]>| match mac {
        Some(mac) => mac.map(|byte| format!("{byte:02x}")).join(":"),
        None => "-".into(),
    };
    let mut line = match pod {
        Some((name, uid)) => format!("{name} {}", uid.as_deref().unwrap_or("-")),
        None => "-".into(),
    };
    for host in hosts {
        write!(line, "; host {} {}", host.name, mac(&host.mac)).expect("a String takes everything");
    }
    for sandbox in sandboxes {
        write!(line, "; pod {} {}", sandbox.name, mac(&sandbox.mac)).expect("a String takes everything");
        for (address, length) in &sandbox.addresses {
            write!(line, " {address}/{length}").expect("a String takes everything");
        }
    }
    if let Some(bridge) = bridge {
        write!(line, "; bridge {bridge}").expect("a String takes everything");
    }
    line
}

fn check(name: &str, text: &str, expected: &str) {
    assert_eq!(line(&parse(text.as_bytes())), expected, "{name}");
}

#[test]
fn results_of_every_version() {
    check("1.0.0, Flannel", &cached(WEB, "eth0", FLANNEL, RESULT), RESULT_TEXT);
    let dual = |version: &str, more: &str| {
        format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"veth1"}},{{"name":"eth0","sandbox":"/n"{more}}}],
                "ips":[{{"version":"4","address":"10.0.0.2/24","interface":1}},{{"version":"6","address":"fd00::2/64","interface":1}}]}}"#
        )
    };
    for (version, more) in [("0.3.1", ""), ("0.4.0", ""), ("1.0.0", ""), ("1.1.0", r#","mtu":1450,"pciID":"x""#)] {
        let expected = "default/web-1 b612; host veth1 -; pod eth0 - 10.0.0.2/24 fd00::2/64; bridge cni0";
        check(version, &cached(WEB, "eth0", FLANNEL, &dual(version, more)), expected);
        check("bare", &dual(version, more), "-; host veth1 -; pod eth0 - 10.0.0.2/24 fd00::2/64");
    }
    check("0.2.0", &cached(WEB, "eth0", FLANNEL, r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#), "not yet");
}

#[test]
fn arguments() {
    let with = |arguments: &str| cached(arguments, "eth0", FLANNEL, RESULT);
    let reordered = r#"[["K8S_POD_UID","b612"],["K8S_POD_NAME","web-1"],["K8S_POD_NAMESPACE","default"]]"#;
    check("another order", &with(reordered), RESULT_TEXT);
    let older = r#"[["K8S_POD_NAME","web-1"],["K8S_POD_NAMESPACE","default"]]"#;
    check("no UID", &with(older), &RESULT_TEXT.replace("b612", "-"));
    check("empty UID", &with(&reordered.replace("b612", "")), &RESULT_TEXT.replace("b612", "-"));
    check("no namespace", &with(r#"[["K8S_POD_NAME","web-1"]]"#), "foreign");
    check("no arguments, as of podman", &with("[]"), "foreign");
    check("null, as Go writes an empty list", &with("null"), "foreign");
}

#[test]
fn interfaces_and_addresses() {
    let with = |result: &str| cached(WEB, "eth0", "{}", result);
    let both = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"va"},{"name":"vb"},{"name":"eth0","mac":"02:00:00:00:00:0a","sandbox":"/n"},
        {"name":"eth1","mac":"02-00-00-00-00-0B","sandbox":"/n"}],"ips":[{"address":"10.0.0.2/24","interface":2},
        {"address":"10.1.0.2/16","interface":3},{"address":"10.2.0.2/16"}]}"#;
    check(
        "two of each",
        &with(both),
        "default/web-1 b612; host va -; host vb -; pod eth0 02:00:00:00:00:0a 10.0.0.2/24; pod eth1 02:00:00:00:00:0b 10.1.0.2/16",
    );
    let without_index = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"va"},{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.2.0.2/16"}]}"#;
    check("an address without index", &with(without_index), "default/web-1 b612; host va -; pod eth0 - 10.2.0.2/16");
    check("no interfaces", &with(r#"{"cniVersion":"1.0.0"}"#), "default/web-1 b612");
    check("null", &with(r#"{"cniVersion":"1.0.0","interfaces":null,"ips":null}"#), "default/web-1 b612");
    let loopback = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"lo","mac":"00:00:00:00:00:00","sandbox":"/n"}],
        "ips":[{"address":"127.0.0.1/8","interface":0}]}"#;
    check("loopback", &cached(WEB, "lo", "{}", loopback), "foreign");
    check("loopback by its interface", &cached(WEB, "", "{}", loopback), "foreign");
    check("loopback by its name", &cached(WEB, "lo", "{}", r#"{"cniVersion":"1.0.0"}"#), "foreign");
    check("bare loopback", loopback, "foreign");
}

#[test]
fn bridges() {
    let cases = [
        (r#"{"type":"bridge"}"#, "; bridge cni0"),
        (r#"{"type":"bridge","bridge":"br7"}"#, "; bridge br7"),
        (r#"{"plugins":[{"type":"tuning"},{"type":"bridge","bridge":"br7"}]}"#, "; bridge br7"),
        (r#"{"plugins":[{"type":"flannel"}]}"#, "; bridge cni0"),
        (r#"{"plugins":[{"type":"flannel","delegate":{"bridge":"mynet0"}}]}"#, "; bridge mynet0"),
        (r#"{"plugins":[{"type":"flannel","delegate":{"type":"ptp","bridge":"mynet0"}}]}"#, ""),
        (r#"{"plugins":[{"type":"ptp"}]}"#, ""),
        ("not json", ""),
    ];
    for (configuration, bridge) in cases {
        let text = cached(WEB, "eth0", configuration, r#"{"cniVersion":"1.0.0"}"#);
        check(configuration, &text, &format!("default/web-1 b612{bridge}"));
    }
    check(
        "no base64",
        &cached(WEB, "eth0", "{}", r#"{"cniVersion":"1.0.0"}"#).replace(r#""config":""#, r#""config":"!"#),
        "default/web-1 b612",
    );
}

#[test]
fn not_yet() {
    let whole = cached(WEB, "eth0", FLANNEL, RESULT);
    for end in 0..whole.len() {
        check(&format!("first {end} bytes"), &whole[..end], "not yet");
    }
    check("another kind", &whole.replace("cniCacheV1", "cniCacheV2"), "not yet");
    check("no result", r#"{"kind":"cniCacheV1"}"#, "not yet");
    check("of no use", "{}", "not yet");
    for (from, to) in [
        ("10.244.0.3/24", "10.244.0.3"),
        ("10.244.0.3/24", "10.244.0.3/33"),
        ("9a:6f:00:00:00:03", "9a:6f:00:00:00"),
        ("9a:6f:00:00:00:03", "9a:6f:00:00:00:03:04"),
        ("9a:6f:00:00:00:03", "9a:6f:00:00:00:+3"),
    ] {
        check(to, &whole.replace(from, to), "not yet");
    }
    parse(&[0xff, 0xfe]);
}

/// A file as large as one may be, with as many interfaces and addresses as fit, once took minutes: each was held against each.
#[test]
fn many_interfaces_with_many_addresses() {
    let interfaces = [r#"{"name":"a","sandbox":"b"}"#; 30_000].join(",");
    let ips = [r#"{"address":"10.0.0.1/8","interface":1}"#; 20_000].join(",");
    let start = std::time::Instant::now();
    let text = format!(r#"{{"cniVersion":"1.0.0","interfaces":[{interfaces}],"ips":[{ips}]}}"#);
    let Reading::Result(result) = parse(text.as_bytes()) else { panic!("it is a result") };
    assert_eq!(result.sandboxes[1].addresses.len(), 20_000);
    assert!(start.elapsed().as_secs() < 10, "it took {:?}", start.elapsed());
}
