//! How many entries the maps hold: what was asked for, and what there is. A pinned map keeps the size it was made with.

use std::fmt;

use crate::compile::Limits;

/// How many entries each map is wanted to hold at most. Every one is a flag of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub endpoints: u32,
    pub exact: u32,
    pub prefixes: u32,
    pub rules: u32,
    pub ports: u32,
    pub services: u32,
    pub flows: u32,
    pub fragments: u32,
}

/// A pinned map of another size than the flags ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherSize {
    pub map: &'static str,
    /// Entries that it holds at most.
    pub holds: u32,
    pub wanted: u32,
}

/// Maps that the next agent takes over, and how many entries those hold whose size is a flag of the agent. Tables of policy take a whole
/// new content beside the old, as a change writes what is new before the old goes.
pub fn pinned(sizes: Sizes) -> Vec<(&'static str, Option<u32>)> {
    let Sizes { endpoints, exact, prefixes, rules, ports, services, flows, fragments } = sizes;
    let twice = |size: u32| Some(size.saturating_mul(2));
    vec![
        ("CONFIG", None),
        ("FLOW_STATS", None),
        ("ENDPOINTS", twice(endpoints)),
        ("RECORDS", twice(endpoints)),
        ("ENDPOINT_STATS", Some(endpoints)),
        ("CLASS_EXACT_V4", twice(exact)),
        ("CLASS_EXACT_V6", twice(exact)),
        ("CLASS_CIDR_V4", twice(prefixes)),
        ("CLASS_CIDR_V6", twice(prefixes)),
        ("RULES", twice(rules)),
        ("PORTS", twice(ports)),
        ("SERVICES", twice(services)),
        ("BACKENDS", None),
        ("STAMPS", None),
        ("SERVICE_PORTS", None),
        ("FLOWS", Some(flows)),
        ("FRAGMENTS", Some(fragments)),
        ("PAUSES", None),
        ("COUNTERS", None),
        ("EARLY", None),
        ("EVENT_BUDGET", None),
        ("RULE_HITS", None),
    ]
}

// === impl Sizes ===

impl Default for Sizes {
    fn default() -> Self {
        let Limits { endpoints_max, exact_max, prefixes_max, rules_max, ports_max, services_max, stamps_max: _ } =
            Limits::default();
        let size = |limit: usize| u32::try_from(limit).expect("the defaults are small");
        Self {
            endpoints: size(endpoints_max),
            exact: size(exact_max),
            prefixes: size(prefixes_max),
            rules: size(rules_max),
            ports: size(ports_max),
            services: size(services_max),
            flows: 131_072,
            fragments: 8_192,
        }
    }
}

impl Sizes {
    /// How much may be compiled for maps of these sizes.
    pub fn limits(self) -> Limits {
        Limits {
            endpoints_max: self.endpoints as usize,
            exact_max: self.exact as usize,
            prefixes_max: self.prefixes as usize,
            rules_max: self.rules as usize,
            ports_max: self.ports as usize,
            services_max: self.services as usize,
            ..Limits::default()
        }
    }

    /// For how many entries of each table there is room.
    pub fn room(self, table: &str) -> Option<u32> {
        match table {
            "ENDPOINTS" => Some(self.endpoints),
            "CLASS_EXACT_V4" | "CLASS_EXACT_V6" => Some(self.exact),
            "CLASS_CIDR_V4" | "CLASS_CIDR_V6" => Some(self.prefixes),
            "RULES" => Some(self.rules),
            "PORTS" => Some(self.ports),
            "SERVICES" => Some(self.services),
            _ => None,
        }
    }

    /// No more than what the maps hold, of which `holds` tells.
    pub(super) fn within(self, holds: impl Fn(&str) -> u32) -> Self {
        let half = |map: &str| holds(map) / 2;
        Self {
            endpoints: self.endpoints.min(half("ENDPOINTS")).min(half("RECORDS")).min(holds("ENDPOINT_STATS")),
            exact: self.exact.min(half("CLASS_EXACT_V4")).min(half("CLASS_EXACT_V6")),
            prefixes: self.prefixes.min(half("CLASS_CIDR_V4")).min(half("CLASS_CIDR_V6")),
            rules: self.rules.min(half("RULES")),
            ports: self.ports.min(half("PORTS")),
            services: self.services.min(half("SERVICES")),
            flows: holds("FLOWS"),
            fragments: holds("FRAGMENTS"),
        }
    }

    /// The maps that are of another size than these sizes want.
    pub(super) fn others(self, holds: impl Fn(&str) -> u32) -> Vec<OtherSize> {
        let sized = pinned(self).into_iter().filter_map(|(map, wanted)| Some((map, wanted?)));
        sized
            .map(|(map, wanted)| OtherSize { map, holds: holds(map), wanted })
            .filter(|other| other.holds != other.wanted)
            .collect()
    }
}

// === impl OtherSize ===

impl fmt::Display for OtherSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds {} entries, not {}", self.map, self.holds, self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pinned by an agent with these sizes.
    fn holds(sizes: Sizes) -> impl Fn(&str) -> u32 {
        move |name| pinned(sizes).into_iter().find(|(map, _)| *map == name).and_then(|(_, size)| size).expect("a size")
    }

    #[test]
    fn a_change_of_everything_fits_beside_what_it_replaces() {
        let sizes =
            Sizes { endpoints: 3, exact: 4, prefixes: 5, rules: 6, ports: 7, services: 10, flows: 8, fragments: 9 };
        let Limits { endpoints_max, exact_max, prefixes_max, rules_max, ports_max, services_max, .. } = sizes.limits();
        let maps = [
            ("ENDPOINTS", endpoints_max),
            ("RECORDS", endpoints_max),
            ("CLASS_EXACT_V4", exact_max),
            ("CLASS_EXACT_V6", exact_max),
            ("CLASS_CIDR_V4", prefixes_max),
            ("CLASS_CIDR_V6", prefixes_max),
            ("RULES", rules_max),
            ("PORTS", ports_max),
            ("SERVICES", services_max),
        ];
        for (map, limit) in maps {
            assert!(holds(sizes)(map) as usize >= 2 * limit, "{map}");
        }
        assert_eq!(sizes.within(holds(sizes)), sizes);
        assert_eq!(sizes.others(holds(sizes)), []);
    }

    #[test]
    fn smaller_maps_of_an_earlier_agent_are_the_limits() {
        let small = Sizes { rules: 3, flows: 100, ..Sizes::default() };
        let found = Sizes::default().within(holds(small));
        assert_eq!(found, small);
        let others = Sizes::default().others(holds(small));
        let told: Vec<String> = others.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["RULES holds 6 entries, not 1048576", "FLOWS holds 100 entries, not 131072"]);
    }

    /// Policies get no more than was asked for; the flow table is as large as it is.
    #[test]
    fn larger_maps_of_an_earlier_agent_do_not_raise_the_limits() {
        let small = Sizes { rules: 3, flows: 100, ..Sizes::default() };
        assert_eq!(small.within(holds(Sizes::default())), Sizes { flows: 131_072, ..small });
    }
}
