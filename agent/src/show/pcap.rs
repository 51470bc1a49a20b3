//! A file of packets in the format pcap-ng (draft-ietf-opsawg-pcapng), as Wireshark reads it: an interface for each place where packets
//! were met, times in nanoseconds, and for each packet a comment that says why it was refused.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, SystemTime};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness};

use crate::observe::capture::Packet;
use crate::observe::record::Record;

/// Of epb_flags: the packet came in by the interface, or went out.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

pub struct PacketFile<W: Write> {
    writer: PcapNgWriter<W>,
    snaplen: u32,
    /// In the order of their blocks.
    interfaces: Vec<(String, bool)>,
    written: u64,
}

impl<W: Write> PacketFile<W> {
    /// Begins with the interface of the pod, so that a file without packets says where there were none.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn begin(out: W, pod: &str, interface: &str, snaplen: u32) -> anyhow::Result<Self> {
        let comment = format!("packets of pod {pod} that Palisade has refused");
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![
                SectionHeaderOption::Common(CommonOption::Comment(comment.into())),
                SectionHeaderOption::UserApplication(format!("palisade {}", crate::VERSION).into()),
            ],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(out, section)?;
        let mut file = Self { writer, snaplen, interfaces: Vec::new(), written: 0 };
        file.interface(interface, false)?;
        file.flush()?;
        Ok(file)
    }

    /// Its number; one that is met for the first time gets a block.
    fn interface(&mut self, name: &str, raw: bool) -> anyhow::Result<u32> {
        let is_it = |(its, is_raw): &(String, bool)| its == name && *is_raw == raw;
        if let Some(number) = self.interfaces.iter().position(is_it) {
            return Ok(number as u32);
        }
        let linktype = if raw { DataLink::RAW } else { DataLink::ETHERNET };
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
            InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
        ];
        let block = InterfaceDescriptionBlock { linktype, snaplen: self.snaplen, options };
        self.writer.write_pcapng_block(block)?;
        self.interfaces.push((name.to_owned(), raw));
        Ok(self.interfaces.len() as u32 - 1)
    }

    /// Whoever reads along sees it at once.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or is not what an agent says.
    pub fn packet(&mut self, packet: &Packet) -> anyhow::Result<()> {
        let interface_id = self.interface(&packet.interface, packet.raw)?;
        let data = packet.bytes()?;
        // As the interface sees it: what a pod sends comes in by its veth. Where it leaves the node it goes out.
        let leaves = packet.record.at.is_some() || packet.record.direction == "ingress";
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(packet.time),
            original_len: packet.length.max(data.len() as u32),
            data: data.into(),
            options: vec![
                EnhancedPacketOption::Common(CommonOption::Comment(comment(&packet.record).into())),
                EnhancedPacketOption::Flags(if leaves { OUTBOUND } else { INBOUND }),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        self.written += 1;
        self.flush()
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    /// `lost`: how many packets are not in the file because nobody could take them.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn end(&mut self, lost: u64) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let options = vec![
            InterfaceStatisticsOption::IsbEndTime(now),
            InterfaceStatisticsOption::IsbIfDrop(lost),
            InterfaceStatisticsOption::IsbUsrDeliv(self.written),
        ];
        let block = InterfaceStatisticsBlock { interface_id: 0, timestamp: now, options };
        self.writer.write_pcapng_block(block)?;
        self.flush()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.writer.get_mut().flush()?)
    }
}

/// Why the packet was refused, on one line.
fn comment(record: &Record) -> String {
    let Record { verdict, direction, reason, pod, .. } = record;
    let mut text = format!("{verdict} {direction} of {pod}: {reason}");
    if let Some(peer) = &record.peer {
        text += &format!(", peer {peer}");
    }
    let isolated_by = Some(record.policies.join(",")).filter(|policies| !policies.is_empty());
    for (word, said) in [("isolated by", isolated_by), ("by", record.rule.clone()), ("at", record.at.clone())] {
        text += &said.map_or_else(String::new, |said| format!(", {word} {said}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(interface: &str, raw: bool, record: Record) -> Packet {
        let (time, length) = (1_764_000_000_123_456_789, 60);
        Packet { record, time, interface: interface.to_owned(), raw, length, bytes: "RQAAPA==".to_owned() }
    }

    /// By hand, as the draft has it: little endian, everything padded to four bytes, the length of a block at both its ends.
    #[test]
    fn what_is_written_is_what_the_format_says() {
        let record = Record {
            verdict: "refused".to_owned(),
            direction: "egress".to_owned(),
            reason: "no-rule".to_owned(),
            pod: "a/b".to_owned(),
            ..Record::default()
        };
        let mut file = PacketFile::begin(Vec::new(), "a/b", "veth7", 256).expect("memory");
        let begun = file.writer.get_ref().len();
        file.packet(&packet("veth7", false, record)).expect("memory");
        let written = file.writer.get_ref()[begun..].to_owned();
        let block = |kind: u32, body: &[u8]| {
            let length = (12 + body.len() as u32).to_le_bytes();
            [&kind.to_le_bytes()[..], &length, body, &length].concat()
        };
        let comment = b"refused egress of a/b: no-rule";
        let time = 1_764_000_000_123_456_789_u64;
        let (high, low) = ((time >> 32) as u32, time as u32);
        let fixed = [0, high, low, 4, 60].map(u32::to_le_bytes).concat();
        let options = [
            &[1, 0, comment.len() as u8, 0][..],
            comment,
            &[0, 0],
            &[2, 0, 4, 0, INBOUND as u8, 0, 0, 0],
            &[0, 0, 0, 0],
        ];
        let body = [&fixed[..], &[0x45, 0, 0, 60], &options.concat()].concat();
        assert_eq!(written, block(6, &body));
        let interface = [
            &1_u32.to_le_bytes()[..],
            &256_u32.to_le_bytes(),
            &[2, 0, 5, 0],
            b"veth7\0\0\0",
            &[9, 0, 1, 0, 9, 0, 0, 0],
            &[0; 4],
        ];
        assert!(
            file.writer.get_ref()[..begun].ends_with(&block(1, &interface.concat())),
            "{:?}",
            &file.writer.get_ref()[..begun]
        );
    }

    #[test]
    fn each_place_is_an_interface_of_its_own() {
        let mut file = PacketFile::begin(Vec::new(), "a/b", "veth7", 256).expect("memory");
        let at = |at: &str| Record { at: Some(at.to_owned()), direction: "egress".to_owned(), ..Record::default() };
        file.packet(&packet("tun0", true, at("interface 9"))).expect("memory");
        file.packet(&packet("veth7", false, Record::default())).expect("memory");
        file.packet(&packet("tun0", true, at("interface 9"))).expect("memory");
        assert_eq!(file.interfaces, [("veth7".to_owned(), false), ("tun0".to_owned(), true)]);
        file.end(3).expect("memory");
        assert_eq!(file.written(), 3);
    }

    #[test]
    fn a_comment_says_why() {
        let record = Record {
            verdict: "refused".to_owned(),
            direction: "ingress".to_owned(),
            reason: "no-rule".to_owned(),
            pod: "shop/db".to_owned(),
            peer: Some("shop/web".to_owned()),
            policies: vec!["shop/p".to_owned(), "shop/q".to_owned()],
            at: Some("interface 9".to_owned()),
            ..Record::default()
        };
        assert_eq!(
            comment(&record),
            "refused ingress of shop/db: no-rule, peer shop/web, isolated by shop/p,shop/q, at interface 9"
        );
    }
}
