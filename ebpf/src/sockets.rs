//! A pod's own sockets: which of them a packet would reach, in the pod's network namespace.

use core::mem::size_of_val;

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use palisade_common::layout::Address;
use palisade_common::parse::{Packet, V4, protocol};

pub const TCP: u8 = protocol::TCP;
pub const UDP: u8 = protocol::UDP;

/// No socket has this state.
pub const NO_SOCKET: u32 = 0;

/// The state of the pod's socket for a packet, or [`NO_SOCKET`]. Of TCP, that of one that listens: an established one would be found
/// first, so the other end is none.
#[inline(always)]
pub fn socket_state<const PROTOCOL: u8>(ctx: *mut __sk_buff, packet: &Packet, netns_id: i32, to_pod: bool) -> u32 {
    let (source, destination) = ((&packet.source, packet.source_port), (&packet.destination, packet.destination_port));
    let (local, mut remote) = if to_pod { (destination, source) } else { (source, destination) };
    if PROTOCOL == TCP {
        remote = (&Address::ZERO, 0);
    }
    // SAFETY: writing a union's fields, all of those that the helper reads; which of the two it is it is told by the size. Sockets
    // are reference counted: what the look-up returns is released on the only path that has it.
    unsafe {
        let mut tuple = core::mem::MaybeUninit::<bpf_sock_tuple>::uninit();
        let fields = tuple.as_mut_ptr();
        let size = if packet.family == V4 {
            let fields = &raw mut (*fields).__bindgen_anon_1.ipv4;
            (*fields).saddr = remote.0.v4_word();
            (*fields).daddr = local.0.v4_word();
            (*fields).sport = remote.1.to_be();
            (*fields).dport = local.1.to_be();
            size_of_val(&*fields)
        } else {
            let fields = &raw mut (*fields).__bindgen_anon_1.ipv6;
            (*fields).saddr = remote.0.words;
            (*fields).daddr = local.0.words;
            (*fields).sport = remote.1.to_be();
            (*fields).dport = local.1.to_be();
            size_of_val(&*fields)
        };
        let (ctx, tuple, netns) = (ctx.cast(), tuple.as_mut_ptr(), u64::from(netns_id as u32));
        let socket = match PROTOCOL {
            TCP => bpf_sk_lookup_tcp(ctx, tuple, size as u32, netns, 0),
            _ => bpf_sk_lookup_udp(ctx, tuple, size as u32, netns, 0),
        };
        if socket.is_null() {
            return NO_SOCKET;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    }
}
