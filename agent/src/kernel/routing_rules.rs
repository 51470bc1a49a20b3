//! Routing rules (ip-rule(8)) that look at bits of packets' marks.

use std::io;

use netlink_packet_core::{NlasIterator, parse_u32};

use super::qdisc::Requests;

// linux/fib_rules.h
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
/// struct fib_rule_hdr.
const HEADER: usize = 12;

/// The rules of both families that use any of these bits, as ip-rule(8) writes them.
pub(super) fn with_mark_bits(bits: u32) -> io::Result<Vec<String>> {
    let mut requests = Requests::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for rule in requests.rules(family as u8)? {
            if let Some((mark, mask)) = mark_of(&rule)
                && mask & bits != 0
            {
                found.push(format!("fwmark {mark:#x}/{mask:#x}"));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Mark and mask of a rule that has them. The kernel tells a mask with each mark.
fn mark_of(rule: &[u8]) -> Option<(u32, u32)> {
    let (mut mark, mut mask) = (0, 0);
    for attribute in NlasIterator::new(rule.get(HEADER..)?).flatten() {
        match attribute.kind() {
            FRA_FWMARK => mark = parse_u32(attribute.value()).ok()?,
            FRA_FWMASK => mask = parse_u32(attribute.value()).ok()?,
            _ => {}
        }
    }
    (mask != 0).then_some((mark, mask))
}
