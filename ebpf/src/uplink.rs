//! On the node's uplinks, before the kernel has built an skb: drops what to-pod is certain to refuse, and nothing else.
//!
//! What it cannot tell goes on, and is judged at the pod's interface as if it had not been seen here. No flow is remembered here.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use palisade_common::decide::{self, UplinkTables, VXLAN_LENGTH};
use palisade_common::layout::{AWAITED_SINCE, Address, EndpointRecord, UplinkConfig, awaited_slot, is_awaited};
use palisade_common::parse::{self, Bytes, HEADERS_MAX, Packet};

use crate::lookup::{Maps, opaque_zero};
use crate::{maps, parts, report};

/// Takes packets in several buffers, of which it reads the first.
#[xdp(frags)]
pub fn uplink(ctx: XdpContext) -> u32 {
    judge(&ctx)
}

/// For kernels that know of no such packets (before 5.18).
#[xdp]
pub fn uplink_linear(ctx: XdpContext) -> u32 {
    judge(&ctx)
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> u32 {
    let Some(packet) = maps::PACKETS.get_ptr_mut(maps::UPLINK_PACKET) else { return xdp_action::XDP_PASS };
    palisade_uplink_parse(ctx.ctx, packet, 0);
    // SAFETY: this CPU's own element, which no other program uses.
    let seen = unsafe { &*packet };
    if let Some(config) = maps::UPLINK.get(0)
        && let Some(header) = decide::tunnelled(seen, &config.tunnels[UplinkConfig::part(seen.family)])
    {
        let network = config.tunnels[UplinkConfig::part(seen.family)].vni;
        let frame = Frame { ctx: ctx.ctx, base: 0 };
        match frame.words::<2>(header) {
            Some(words) if decide::is_network(words, network) => {}
            _ => return xdp_action::XDP_PASS,
        }
        let base = header + VXLAN_LENGTH;
        palisade_uplink_parse(ctx.ctx, packet, base);
        // SAFETY: as above. A tag within the tunnel leads elsewhere.
        if unsafe { (*packet).network } != ETHERNET_LENGTH {
            return xdp_action::XDP_PASS;
        }
    }
    // SAFETY: as above.
    let packet = unsafe { &*packet };
    let Some((ruling, ifindex)) = decide::refused_early(&Maps::ALONE, packet) else { return xdp_action::XDP_PASS };
    // What somebody captures is refused where there is an skb to capture.
    if parts::palisade_is_paused(ifindex) != 0 || report::is_captured(ifindex) {
        return xdp_action::XDP_PASS;
    }
    report::count(ruling);
    report::tell_early(packet, ruling, ifindex, ctx.ingress_ifindex() as u32);
    xdp_action::XDP_DROP
}

/// Bytes.
const ETHERNET_LENGTH: u32 = 14;

/// Parses the frame that begins `base` bytes into what was received, as far as it is in one piece. A function that the verifier reads by
/// itself (see `parts.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_uplink_parse(ctx: *mut xdp_md, packet: *mut Packet, base: u32) -> u32 {
    // SAFETY: the verifier makes sure that it is what it says, or null.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    parse::frame(&Frame { ctx, base }, packet);
    packet.traits
}

/// [`decide::may_answer`]: 1 or 0. Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_may_answer(packet: *const Packet, record: *const EndpointRecord, epoch: u32) -> u32 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else { return 1 };
    u32::from(decide::may_answer(&Maps::ALONE, packet, record, epoch))
}

/// A frame before there is an skb, or one within it.
struct Frame {
    ctx: *mut xdp_md,
    /// Where it begins.
    base: u32,
}

impl Frame {
    #[inline(always)]
    fn ends(&self) -> (*const u8, usize) {
        let ctx = XdpContext::new(self.ctx);
        (ctx.data() as *const u8, ctx.data_end())
    }
}

impl Bytes for Frame {
    /// Of what is in one piece: a frame in several is malformed to who reads this, and so goes on.
    #[inline(always)]
    fn len(&self) -> u32 {
        let (data, end) = self.ends();
        (end.wrapping_sub(data as usize) as u32).saturating_sub(self.base)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let at = offset.wrapping_add(self.base);
        // As of an skb (`lookup.rs`): read back from the stack.
        // SAFETY: reading a local.
        let at = unsafe { core::ptr::read_volatile(&raw const at) };
        if at >= HEADERS_MAX {
            return None;
        }
        let (data, end) = self.ends();
        let start = data.wrapping_add(at as usize);
        if start.wrapping_add(N * 4) as usize <= end {
            // SAFETY: the comparison proves to the verifier that all N words lie within the packet. They may be unaligned, which BPF loads
            // are allowed to be.
            return Some(unsafe { *start.cast::<[u32; N]>() });
        }
        None
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }

    #[inline(always)]
    fn zero(&self) -> u32 {
        opaque_zero()
    }
}

impl UplinkTables for Maps {
    #[inline(always)]
    fn endpoint_of(&self, address: &Address) -> Option<u32> {
        // SAFETY: a copy is taken at once. Another address's, if the element is used again meanwhile, is its endpoint's, which does not own
        // this one.
        unsafe { maps::POD_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn masquerade(&self, family: u8) -> Option<Address> {
        let config = maps::UPLINK.get(0)?;
        let part = UplinkConfig::part(family);
        if config.unsure[part] != 0 { None } else { Some(config.masquerade[part]) }
    }

    #[inline(always)]
    fn awaits(&self, address: &Address, port: u16, second: u32) -> bool {
        // SAFETY: live array elements; aligned words.
        let word = |index| maps::AWAITED.get_ptr(index).map_or(0, |word| unsafe { core::ptr::read_volatile(word) });
        is_awaited(word(awaited_slot(address, port)), word(AWAITED_SINCE), second)
    }

    #[inline(always)]
    fn may_answer(&self, packet: &Packet, record: &EndpointRecord, epoch: u32) -> bool {
        palisade_may_answer(packet, record, epoch) != 0
    }
}
