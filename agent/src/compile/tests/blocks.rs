//! Random nested blocks: the longest match stands for all blocks that cover an address and do not except it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::World;
use super::random::Dice;
use crate::compile::{Canonical, Limits};
use crate::facts::{Block, Peer};

const SUBJECT: &str = "ns a\npod a/s ip=10.0.0.5 node=n\nveth 5 mac=5 pod=a/s#a/s\ncomplete\n";

/// Few bits that vary, so that prefixes meet: of IPv4 the last eight, of IPv6 eight in the middle.
fn address(dice: &mut Dice) -> IpAddr {
    let low = dice.roll(256);
    match dice.roll(2) {
        0 => Ipv4Addr::from(0x0a00_0000 | low as u32).into(),
        _ => Ipv6Addr::from(0xfd00 << 112 | (low as u128) << 60).into(),
    }
}

fn within(dice: &mut Dice, net: IpNet) -> Option<IpNet> {
    let (from, to) = match net {
        IpNet::V4(_) => (24, 32),
        IpNet::V6(_) => (60, 68),
    };
    let length = from + u8::try_from(dice.roll(usize::from(to - from) + 1)).expect("a length");
    let inside = IpNet::new(address(dice), length).ok()?.trunc();
    (net.contains(&inside) && net != inside).then_some(inside)
}

fn block(dice: &mut Dice) -> Block {
    let all: IpNet = if dice.roll(2) == 0 { "0.0.0.0/0" } else { "::/0" }.parse().expect("a CIDR");
    let cidr = (0..4).find_map(|_| within(dice, all)).unwrap_or(all);
    let except: BTreeSet<IpNet> = (0..dice.roll(12)).filter_map(|_| within(dice, cidr)).collect();
    Block { cidr, except: except.into_iter().collect() }
}

fn told(canonical: &Canonical, address: IpAddr) -> BTreeSet<Peer> {
    if let Some(class) = canonical.exact.get(&address) {
        return class.matchers.clone();
    }
    let holds = canonical.cidrs.iter().filter(|(net, _)| net.contains(&address));
    holds.max_by_key(|(net, _)| net.prefix_len()).map_or(BTreeSet::new(), |(_, class)| class.matchers.clone())
}

fn meant(blocks: &BTreeSet<Block>, address: IpAddr) -> BTreeSet<Peer> {
    let covers =
        |block: &&Block| block.cidr.contains(&address) && !block.except.iter().any(|net| net.contains(&address));
    blocks.iter().filter(covers).cloned().map(Peer::Block).collect()
}

#[test]
fn the_longest_match_stands_for_all() {
    for seed in 1..=150 {
        let mut dice = Dice(seed);
        let mut world = World::new(SUBJECT, Limits::default());
        let mut policies: Vec<BTreeSet<Block>> = vec![BTreeSet::new(); 4];
        for _ in 0..12 {
            let policy = dice.roll(policies.len());
            policies[policy] = (0..dice.roll(6)).map(|_| block(&mut dice)).collect();
            let text = |block: &Block| {
                let except: String = block.except.iter().map(|net| format!("!{net}")).collect();
                format!("@{}{except}", block.cidr)
            };
            let peers: Vec<String> = policies[policy].iter().map(text).collect();
            let peers = if peers.is_empty() { "-".to_owned() } else { peers.join("+") };
            world.apply(&format!("policy a/p{policy} . in({peers}|*)"));
            let canonical = world.compiler.canonical();
            let blocks: BTreeSet<Block> = policies.iter().flatten().cloned().collect();
            for _ in 0..60 {
                let address = address(&mut dice);
                let (told, meant) = (told(&canonical, address), meant(&blocks, address));
                assert_eq!(told, meant, "seed {seed}, {address}, {policies:#?}");
            }
        }
    }
}
