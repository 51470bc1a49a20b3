//! Services' addresses come and go at one instant, and their ports are known while any of them may be asked for.

use palisade_common::layout::{Address, Backends, SERVICE_KNOWN, ServiceKey, Versioned};

use super::super::adopted::adopted;
use super::super::plan::{Installed, Write};
use super::super::sim::Sim;
use super::super::{Delta, Tables};

fn key(last: u32, port: u16) -> ServiceKey {
    ServiceKey { address: Address::v4(last), port, protocol: 6, family: 4 }
}

fn tables(services: &[(u32, u16, u32)]) -> Tables {
    let mut tables = Tables::default();
    for &(last, port, number) in services {
        tables.services.insert(key(last, port), number);
        if number > SERVICE_KNOWN {
            tables.backends.insert(number, Backends { count: number, ..Backends::default() });
        }
    }
    tables
}

/// The writes from what is installed to these tables, without what they write.
fn step(installed: &mut Installed, sim: &mut Sim, wanted: &Tables) -> String {
    let delta: Delta = installed.tables().delta_to(wanted);
    let plan = installed.plan(&delta).expect("there are no endpoints");
    plan.writes.iter().for_each(|write| sim.write(write));
    installed.commit(&plan);
    let name = |write: &Write| match write {
        Write::ServicePort(port, on) => format!("{}{port}", if *on { "+" } else { "-" }),
        Write::Service(key, Some(Versioned { before, after, .. })) => format!("{}:{before}>{after}", key.port),
        Write::Service(key, None) => format!("{}:gone", key.port),
        Write::Backends(row, value) => format!("row{row}{}", if value.is_some() { "" } else { ":gone" }),
        Write::Epoch(_) => "|".to_owned(),
        other => format!("{other:?}"),
    };
    plan.writes.iter().map(name).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_port_is_known_from_the_first_to_the_last() {
    let (mut installed, mut sim) = (Installed::new(1, 4), Sim::default());
    for (wanted, writes) in [
        (tables(&[(1, 80, 1)]), "+80 80:0>1 |"),
        (tables(&[(1, 80, 1), (2, 80, 1), (3, 53, 2)]), "row2 +53 80:0>1 53:0>2 |"),
        (tables(&[(2, 80, 1), (3, 53, 3)]), "row3 80:1>0 53:2>3 | 80:gone row2:gone"),
        (tables(&[(9, 80, 1)]), "80:1>0 53:3>0 80:0>1 | 80:gone 53:gone row3:gone -53"),
        (tables(&[]), "80:1>0 | 80:gone -80"),
    ] {
        assert_eq!(step(&mut installed, &mut sim, &wanted), writes);
    }
}

/// A change that was cut off is taken back, and ports are known whatever the earlier agent had written of them.
#[test]
fn what_an_earlier_agent_left_is_made_whole() {
    let (mut installed, mut sim) = (Installed::new(1, 4), Sim::default());
    step(&mut installed, &mut sim, &tables(&[(1, 80, 1), (2, 53, 2)]));
    let delta = installed.tables().delta_to(&tables(&[(2, 53, 3), (4, 443, 1)]));
    let plan = installed.plan(&delta).expect("there are no endpoints");
    for write in plan.writes.iter().take_while(|write| !matches!(write, Write::Epoch(_))) {
        sim.write(write);
    }
    let found = adopted(sim.found().clone());
    assert_eq!(found.tables.services, tables(&[(1, 80, 1), (2, 53, 2)]).services);
    for port in [53, 80] {
        assert!(found.writes.contains(&Write::ServicePort(port, true)), "{port}");
    }
    assert!(found.writes.contains(&Write::Service(key(4, 443), None)));
}
