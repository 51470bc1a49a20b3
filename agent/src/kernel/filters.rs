//! Filters of an interface's clsact qdisc, as rtnetlink lists them, and the place among them that is ours.

use std::ffi::CStr;
use std::io;

use netlink_packet_core::{DecodeError, NlaBuffer, NlasIterator};

use super::qdisc::Requests;

// linux/rtnetlink.h, linux/pkt_cls.h
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// linux/if_ether.h, as it travels.
const ETH_P_ALL_BE: u16 = 0x0003_u16.to_be();
/// Size of struct tcmsg.
const HEADER: usize = 20;

/// A filter of whomever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Smaller ones come first.
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// An ethertype as it travels.
    pub(super) protocol: u16,
    chain: u32,
    kind: String,
    /// Of a program: its name and id.
    name: Option<String>,
    pub(super) program: Option<u32>,
}

/// Where our filter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Ours is here already.
    Replace { priority: u16, handle: u32 },
    /// In front of all others: of one priority, the filter that was added last is asked first.
    New { priority: u16, handle: u32 },
}

impl Filter {
    /// The program's name, or the kind of a filter that is none.
    pub(super) fn title(self) -> String {
        self.name.unwrap_or(self.kind)
    }
}

/// The filters of one direction, in the order in which they are asked. `parent`: its number.
pub(super) fn list(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let answer = Requests::open()?.filters(ifindex, parent)?;
    let read = |message: &Vec<u8>| parse(message).map_err(|error| io::Error::other(error.to_string())).transpose();
    answer.iter().filter_map(read).collect()
}

/// `None`: a chain's priority without a filter, as the kernel lists them too.
fn parse(message: &[u8]) -> Result<Option<Filter>, DecodeError> {
    let word = |at: usize| {
        let bytes = message.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        bytes.map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(|| DecodeError::from("a short tcmsg"))
    };
    let (handle, info) = (word(8)?, word(16)?);
    let mut filter = Filter { priority: (info >> 16) as u16, protocol: info as u16, handle, ..Filter::default() };
    for attribute in NlasIterator::new(&message[HEADER..]) {
        let attribute: NlaBuffer<_> = attribute?;
        match attribute.kind() {
            TCA_KIND => filter.kind = text(attribute.value()),
            TCA_CHAIN => filter.chain = number(attribute.value()),
            TCA_OPTIONS if filter.kind == "bpf" => {
                for option in NlasIterator::new(attribute.value()) {
                    let option: NlaBuffer<_> = option?;
                    match option.kind() {
                        TCA_BPF_NAME => filter.name = Some(text(option.value())),
                        TCA_BPF_ID => filter.program = Some(number(option.value())),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok((filter.handle != 0).then_some(filter))
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes).escape_ascii().to_string()
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The place for a program of this name: where an earlier agent has put one of that name, else in front of all that are there. All
/// filters of one priority have one kind and one protocol.
pub(super) fn place(filters: &[Filter], name: &str) -> Place {
    let ours = |filter: &&Filter| filter.kind == "bpf" && filter.name.as_deref() == Some(name);
    if let Some(Filter { priority, handle, .. }) = filters.iter().find(ours) {
        return Place::Replace { priority: *priority, handle: *handle };
    }
    let of = |priority: u16| filters.iter().filter(move |filter| filter.priority == priority);
    let fits = |filter: &Filter| filter.kind == "bpf" && filter.protocol == ETH_P_ALL_BE && filter.chain == 0;
    let priority = (1..=u16::MAX).find(|priority| of(*priority).all(fits)).unwrap_or(u16::MAX);
    let handle = (1..=u32::MAX).find(|handle| of(priority).all(|filter| filter.handle != *handle)).unwrap_or(0);
    Place::New { priority, handle }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, name: &str) -> Filter {
        let name = Some(name.to_owned());
        Filter { priority, handle, protocol: ETH_P_ALL_BE, kind: "bpf".to_owned(), name, ..Filter::default() }
    }

    #[test]
    fn only_our_own_filter_is_replaced() {
        let theirs = filter(1, 1, "theirs");
        let other_kind = Filter { kind: "flower".to_owned(), ..filter(1, 1, "") };
        let other_protocol = Filter { protocol: 8, ..filter(1, 1, "ip") };
        let cases: [(&[Filter], Place); 6] = [
            (&[], Place::New { priority: 1, handle: 1 }),
            (&[filter(10, 1, "theirs")], Place::New { priority: 1, handle: 1 }),
            (std::slice::from_ref(&theirs), Place::New { priority: 1, handle: 2 }),
            (&[theirs.clone(), filter(1, 2, "ours")], Place::Replace { priority: 1, handle: 2 }),
            (&[other_kind], Place::New { priority: 2, handle: 1 }),
            (&[other_protocol, filter(2, 1, "x")], Place::New { priority: 2, handle: 2 }),
        ];
        for (filters, wanted) in cases {
            assert_eq!(place(filters, "ours"), wanted, "{filters:?}");
        }
    }

    #[test]
    fn a_filter_as_the_kernel_tells_of_it() {
        let mut message = vec![0; HEADER];
        message[8..12].copy_from_slice(&3_u32.to_ne_bytes());
        message[16..20].copy_from_slice(&((5_u32 << 16) | u32::from(ETH_P_ALL_BE)).to_ne_bytes());
        message.extend(attribute(TCA_KIND, b"bpf\0"));
        let options = [attribute(TCA_BPF_NAME, b"from_pod\0"), attribute(TCA_BPF_ID, &77_u32.to_ne_bytes())].concat();
        message.extend(attribute(TCA_OPTIONS, &options));
        let wanted = Filter { program: Some(77), ..filter(5, 3, "from_pod") };
        assert_eq!(parse(&message).expect("it is whole"), Some(wanted));
        message[8..12].fill(0);
        assert_eq!(parse(&message).expect("it is whole"), None);
        parse(&message[..12]).expect_err("it is short");
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
