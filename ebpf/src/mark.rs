//! The stamp: those bits of `skb->mark` that say which of the node's pods opened a packet's flow.

use aya_ebpf::programs::TcContext;

/// The bits, side by side. Set by the agent when it loads the programs.
#[unsafe(no_mangle)]
static STAMP_MASK: u32 = 0xff00_0000;
/// Where they begin.
#[unsafe(no_mangle)]
static STAMP_SHIFT: u32 = 24;

#[inline(always)]
fn mask() -> (u32, u32) {
    // SAFETY: reading statics that are constant from loading on; volatile, lest the compiler put in what is written here.
    unsafe { (core::ptr::read_volatile(&raw const STAMP_MASK), core::ptr::read_volatile(&raw const STAMP_SHIFT)) }
}

/// 0: the packet has none.
#[inline(always)]
pub fn stamp_of(mark: u32) -> u16 {
    let (mask, shift) = mask();
    ((mark & mask) >> (shift & 31)) as u16
}

/// Gives the packet this stamp (0: none), whatever it bore before.
#[inline(always)]
pub fn put(ctx: &TcContext, stamp: u16) {
    let (mask, shift) = mask();
    // SAFETY: the context is the kernel's own and lives as long as the program runs. The kernel takes stores of the whole word only.
    unsafe {
        let old = core::ptr::read_volatile(&raw const (*ctx.skb.skb).mark);
        let new = (old & !mask) | ((u32::from(stamp) << (shift & 31)) & mask);
        if new != old {
            core::ptr::write_volatile(&raw mut (*ctx.skb.skb).mark, new);
        }
    }
}
