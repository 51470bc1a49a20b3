//! Addresses and ports of Services: what may be translated before it reaches whom it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use palisade_common::layout::{Address, BACKENDS_MAX, Backends, Family, SERVICE_KNOWN, ServiceKey};

use super::desired::Desired;
use super::numbers::next;
use super::prefix::{v4_word, v6_words};
use crate::facts::{Fault, Kind};
use crate::index::{Front, Index};
use crate::tables::Tables;

#[derive(Debug, Default)]
pub(super) struct Services {
    /// What SERVICES says of each front that there is room for: a number, and the row's content if the number is that of a row.
    known: BTreeMap<Front, (u32, Option<Backends>)>,
    /// Fronts without room.
    refused: BTreeSet<Front>,
    /// Of an earlier agent; kept until all Services are known.
    adopted: Option<(BTreeMap<ServiceKey, u32>, BTreeMap<u32, Backends>)>,
    taken: usize,
}

// === impl Services ===

impl Services {
    /// Established connections to Services must not break for want of a list.
    pub(super) fn adopt(&mut self, tables: &Tables) {
        self.adopted = Some((tables.services.clone(), tables.backends.clone()));
    }

    pub(super) fn update(
        &mut self,
        index: &Index,
        dirty: BTreeSet<Front>,
        services_max: usize,
        (backends, desired): (&mut u32, &mut Desired),
    ) {
        self.keep_adopted(index, desired);
        let (gone, here): (Vec<Front>, Vec<Front>) = dirty.into_iter().partition(|front| !index.has_front(front));
        for front in gone {
            self.refused.remove(&front);
            self.forget(&front, desired);
        }
        let waiting = std::mem::take(&mut self.refused);
        for front in here.into_iter().chain(waiting) {
            let rows = keys(&front).len();
            if !self.known.contains_key(&front) && self.taken + rows > services_max {
                self.refused.insert(front);
                continue;
            }
            self.set(front, row(&index.local_backends(&front)), backends, desired);
        }
    }

    fn set(&mut self, front: Front, row: Option<Backends>, highest: &mut u32, desired: &mut Desired) {
        if self.known.get(&front).is_some_and(|(_, now)| *now == row) {
            return;
        }
        self.forget(&front, desired);
        let number = match row {
            None => SERVICE_KNOWN,
            Some(row) => {
                let number = next(highest);
                desired.backends(number, Some(row));
                number
            }
        };
        for key in keys(&front) {
            desired.service(key, Some(number));
            self.taken += 1;
        }
        self.known.insert(front, (number, row));
    }

    fn forget(&mut self, front: &Front, desired: &mut Desired) {
        let Some((number, row)) = self.known.remove(front) else { return };
        if row.is_some() {
            desired.backends(number, None);
        }
        for key in keys(front) {
            desired.service(key, None);
            self.taken -= 1;
        }
    }

    fn keep_adopted(&mut self, index: &Index, desired: &mut Desired) {
        let Some((services, rows)) = &self.adopted else { return };
        if !index.services_complete() {
            if desired.tables.services.is_empty() {
                services.iter().for_each(|(key, number)| desired.service(*key, Some(*number)));
                rows.iter().for_each(|(row, backends)| desired.backends(*row, Some(*backends)));
            }
            return;
        }
        let known: BTreeSet<ServiceKey> = self.known.keys().flat_map(keys).collect();
        services.keys().filter(|key| !known.contains(key)).for_each(|key| desired.service(*key, None));
        rows.keys().for_each(|row| desired.backends(*row, None));
        self.adopted = None;
    }

    pub(super) fn fault(&self, services_max: usize) -> Option<Fault> {
        let count = self.refused.len();
        let message = format!(
            "{count} of the addresses and ports of Services do not fit the limit of {services_max}: pods with an egress policy reach them \
             only if it admits them as they are"
        );
        (count != 0).then(|| Fault { kind: Kind::Service, object: String::new(), field: String::new(), message })
    }
}

/// The keys of SERVICES that stand for a front: any address is one of either family.
fn keys(front: &Front) -> Vec<ServiceKey> {
    let key = |address, family: Family| ServiceKey {
        address,
        port: front.port,
        protocol: front.protocol.number(),
        family: family as u8,
    };
    match front.address {
        Some(address) => vec![key(words(address), family(address))],
        None => [Family::V4, Family::V6].map(|family| key(Address::ZERO, family)).to_vec(),
    }
}

fn words(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(v4_word(address)),
        IpAddr::V6(address) => v6_words(address),
    }
}

const fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The backends that stand for a Service at a process of the node; of many the first ones do.
fn row(backends: &[(IpAddr, u16)]) -> Option<Backends> {
    let mut row = Backends::default();
    for (index, (address, port)) in backends.iter().take(BACKENDS_MAX).enumerate() {
        row.addresses[index] = words(*address);
        row.ports[index] = *port;
        row.count += 1;
    }
    (row.count != 0).then_some(row)
}
