//! Calls as runtimes make them.

use std::cell::RefCell;

use super::*;

fn environment(command: &str) -> Environment {
    Environment {
        command: command.into(),
        container: "c1".into(),
        netns: "/run/netns/x".into(),
        interface: "eth0".into(),
        args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=web;K8S_POD_UID=u1".into(),
    }
}

fn network(more: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"palisade-cni","socket":"/run/s"{more}}}"#)
}

const RESULT: &str = r#","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"}],"dns":{}}"#;

/// Output, success, and what the agent was asked.
fn call(environment: &Environment, stdin: &str, answer: Answer) -> (Value, bool, Vec<Request>) {
    let asked = RefCell::new(Vec::new());
    let (output, success) = run(environment, stdin.as_bytes(), |socket, request| {
        assert_eq!(socket, Path::new("/run/s"));
        asked.borrow_mut().push(request.clone());
        Ok(answer.clone())
    });
    (serde_json::from_str(&output).unwrap_or(Value::Null), success, asked.into_inner())
}

#[test]
fn add_passes_the_result_on_once_the_agent_says_so() {
    let (output, success, asked) = call(&environment("ADD"), &network(RESULT), Ok(()));
    assert!(success);
    assert_eq!(output["interfaces"][0]["name"], "veth1");
    let [Request::Add(attachment)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(attachment.key, "cbr0-c1-eth0");
    let (told, result) = attachment.read().expect("a kubelet's pod");
    assert_eq!((told.pod.to_string(), told.uid.as_deref()), ("a/web".into(), Some("u1")));
    assert!(told.hosts.contains("veth1") && result.sandboxes.is_empty());

    let refused = Refusal { code: 11, message: "not yet".into() };
    let (output, success, _) = call(&environment("ADD"), &network(RESULT), Err(refused));
    assert!(!success);
    assert_eq!((&output["code"], &output["cniVersion"]), (&json!(11), &json!("1.0.0")));
    assert_eq!(output["msg"], "palisade-cni: not yet");
}

#[test]
fn without_an_agent_nothing_is_added_and_everything_deleted() {
    let valid = r#","cni.dev/valid-attachments":[]"#;
    let play = |command: &str| {
        let gone = |_: &Path, _: &Request| Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        let stdin = network(if command == "GC" { valid } else { RESULT });
        let (output, success) = run(&environment(command), stdin.as_bytes(), gone);
        (serde_json::from_str::<Value>(&output).map_or(json!(0), |output| output["code"].clone()), success)
    };
    assert_eq!(play("ADD"), (json!(11), false));
    assert_eq!(play("CHECK"), (json!(11), false));
    assert_eq!(play("STATUS"), (json!(50), false));
    assert_eq!(play("DEL"), (json!(0), true));
    assert_eq!(play("GC"), (json!(0), true));
}

#[test]
fn calls_that_cannot_be_understood() {
    let without = |change: fn(&mut Environment)| {
        let mut environment = environment("ADD");
        change(&mut environment);
        environment
    };
    let cases = [
        (environment("ADD"), "{".to_owned(), 6),
        (environment("ADD"), network(""), 7),
        (environment("ADD"), network(RESULT).replace("1.0.0", "0.3.0"), 1),
        (environment("ADD"), network(RESULT).replace("\"cniVersion\":\"1.0.0\",\"name\"", "\"name\""), 1),
        (environment("ADD"), network(RESULT).replace("/run/s", "s"), 7),
        (environment("ADD"), network(RESULT).replace("cbr0", ""), 7),
        (environment("FLY"), network(RESULT), 4),
        (without(|it| it.container.clear()), network(RESULT), 4),
        (without(|it| it.interface.clear()), network(RESULT), 4),
        (without(|it| it.netns.clear()), network(RESULT), 4),
    ];
    for (environment, stdin, code) in cases {
        let (output, success, asked) = call(&environment, &stdin, Ok(()));
        assert!(!success && asked.is_empty(), "{stdin}: {output}");
        assert_eq!(output["code"], json!(code), "{stdin}: {output}");
        assert!(VERSIONS.contains(&output["cniVersion"].as_str().expect("a version")), "{output}");
    }
}

#[test]
fn versions() {
    for stdin in ["", "{}", r#"{"cniVersion":"0.4.0"}"#] {
        let (output, success, _) = call(&environment("VERSION"), stdin, Ok(()));
        assert!(success);
        assert_eq!(output["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(output["cniVersion"], if stdin.len() > 2 { "0.4.0" } else { "1.1.0" });
    }
}

#[test]
fn attachments_that_are_no_pods() {
    let read = |args: &str, result: Value| {
        Attachment { key: key("n", "c", "i"), args: args.into(), result }.read().map_err(|refusal| refusal.code)
    };
    let pod = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=web";
    let veth = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "veth1"}]});
    assert_eq!(read(pod, veth.clone()).expect("containerd 1.5 gives no UID").0.uid, None);
    assert_eq!(read("", veth.clone()).err(), Some(4));
    assert_eq!(read("K8S_POD_NAMESPACE=;K8S_POD_NAME=web", veth).err(), Some(4));
    assert_eq!(read(pod, json!({"cniVersion": "1.0.0"})).err(), Some(7));
    assert_eq!(read(pod, json!({"cniVersion": "0.2.0"})).err(), Some(6));
    assert_eq!(read(pod, json!(7)).err(), Some(6));
}

#[test]
fn garbage_collection_names_what_stays() {
    for (valid, keys) in [
        (r#"[{"containerID":"c1","ifname":"eth0"}]"#, BTreeSet::from(["cbr0-c1-eth0".into()])),
        ("[]", BTreeSet::new()),
        // As libcni writes a list without elements that was never made.
        ("null", BTreeSet::new()),
    ] {
        let stdin = network(&format!(r#","cni.dev/valid-attachments":{valid}"#));
        let (output, success, asked) = call(&environment("GC"), &stdin, Ok(()));
        assert!(success, "{valid}: {output}");
        assert_eq!(asked, [Request::Gc { network: "cbr0".into(), keys }]);
    }
    // What is not said is not known to be gone.
    let (output, success, asked) = call(&environment("GC"), &network(""), Ok(()));
    assert!(!success && asked.is_empty() && output["code"] == 7, "{output}");
}
