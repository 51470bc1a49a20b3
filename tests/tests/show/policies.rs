//! `palisade policies`, `maps diff` and `check --against live` on a running node.

use std::time::Duration;

use palisade_tests::lab::probe::Connection;
use serde_json::Value;

use crate::world::World;

pub fn rules_are_told_as_they_are_enforced(world: &World) {
    let (api, db) = (world.place("shop/api"), world.place("shop/db"));
    let mut connection = Connection::open(&api.netns, db.addresses[0], 80).expect("it is allowed");
    assert!(connection.echoes(Duration::from_secs(5)));
    let json = |arguments: &[&str]| {
        let (code, output, error) = world.palisade(0, arguments);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&output).unwrap_or_else(|_| panic!("{output}"))
    };
    let policies = json(&["policies", "-o", "json"]);
    let names: Vec<&str> =
        policies.as_array().expect("a list").iter().filter_map(|policy| policy["name"].as_str()).collect();
    assert_eq!(names, ["shop/api-to-db", "shop/db-from-api", "shop/web-from-outside"]);
    let db_from_api = &policies[1];
    assert_eq!(db_from_api["pods"], serde_json::json!(["shop/db"]));
    assert_eq!(db_from_api["egress"]["rules"], serde_json::json!([]));
    let rule = &db_from_api["ingress"]["rules"][0];
    assert_eq!(rule["ports"], serde_json::json!(["tcp/http", "tcp/8080"]));
    assert_eq!(rule["in_force"], serde_json::json!(["tcp/80", "tcp/8080"]));
    assert!(rule["flows"].as_u64() >= Some(1), "{rule}");
    assert!(rule["admitted"].as_u64() >= Some(1), "{rule}");
    assert_eq!(rule["addresses"], 2);
    let (code, text, _) = world.palisade(0, &["policies", "api-to-db", "-n", "shop"]);
    assert_eq!(code, 0);
    for said in ["egress of shop/api: table ", "10.244.2.0/24 except 10.244.2.3/32", "tcp/80-81; udp/dns", "everything"]
    {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    assert_eq!(world.palisade(0, &["policies", "shop/nobody"]).0, 1);
    what_is_live_is_compared(world);
    drop(connection);
}

/// The connection is open meanwhile.
fn what_is_live_is_compared(world: &World) {
    let file = world.lab.folder.join("stricter.yaml");
    let spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 81}]}]}";
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: db-from-api, namespace: shop}}\nspec: {spec}\n"
    );
    std::fs::write(&file, policy).expect("the folder can be written to");
    let expect = world.lab.folder.join("expect");
    std::fs::write(&expect, "must-work shop/api shop/db 81\nmust-not-work shop/api shop/db http\n").expect("likewise");
    let file = file.to_str().expect("text");
    let check = ["check", "-f", file, "--against", "live", "--expect", expect.to_str().expect("text")];
    let (code, text, error) = world.palisade(0, &check);
    assert_eq!(code, 0, "{text}{error}");
    for said in ["NEWLY REFUSED:", "shop/api", "FLOWS SEEN NOW THAT WOULD BE REFUSED", "EXPECTATIONS: 2 of 2 met"] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    assert_eq!(world.palisade(0, &["check", "-f", file, "--against", "live", "--strict"]).0, 3);
}

pub fn tables_are_as_they_should_be_and_else_it_is_told(world: &World) {
    for node in [0, 1] {
        let (code, text, error) = world.palisade(node, &["maps", "diff"]);
        assert_eq!((code, &*text), (0, "no difference\n"), "{text}{error}");
    }
    // The bytes of 10.244.1.3, which is a peer, out of CLASS_EXACT_V4.
    let map = palisade::kernel::maps_folder(&world.nodes[0].pin_dir).join("CLASS_EXACT_V4");
    let data = aya::maps::MapData::from_pin(&map).expect("it is pinned");
    let mut map: aya::maps::HashMap<_, u32, [u32; 3]> =
        aya::maps::Map::from_map_data(data).expect("a map").try_into().expect("a hash map");
    let key = u32::from_ne_bytes([10, 244, 1, 3]);
    let class = map.get(&key, 0).expect("it has a class");
    map.remove(&key).expect("it was there");
    let (code, text, _) = world.palisade(0, &["maps", "diff"]);
    assert_eq!(code, 3, "{text}");
    for said in ["CLASS_EXACT_V4 10.244.1.3", "loaded    not there", "compiled  pods app=api in namespace shop"] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    let drift = |at_least: u32| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (_, page) = world.agents[0].http("/metrics").expect("it answers");
            let line = page.lines().find(|line| line.starts_with("palisade_drift_entries ")).expect("a metric");
            let told = line.rsplit(' ').next().and_then(|number| number.parse::<u32>().ok()).expect("a number");
            if told == at_least || std::time::Instant::now() > end {
                return told;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    assert_eq!(drift(1), 1);
    map.insert(key, class, 0).expect("there is room");
    assert_eq!(drift(0), 0);
    assert_eq!(world.palisade(0, &["maps", "diff"]).0, 0);
}
