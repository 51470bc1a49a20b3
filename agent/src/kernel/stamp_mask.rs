//! Which bits of `skb->mark` are ours.

use std::fmt;
use std::str::FromStr;

/// Side by side, 4 to 16 of them, none of which kube-proxy uses. Text: a hexadecimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampMask(u32);

/// kube-proxy's marks: to be masqueraded, to be dropped (`--iptables-masquerade-bit` and its like can move them).
const KUBE_PROXY: u32 = 0xc000;
/// How wide a number the records hold.
const WIDTH_MAX: u32 = 16;
const WIDTH_MIN: u32 = 4;

impl StampMask {
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Where the bits begin.
    pub const fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// The highest number that fits. 0 is none.
    pub const fn stamps_max(self) -> u32 {
        self.0 >> self.shift()
    }
}

impl Default for StampMask {
    /// Bits 24 to 31: free of kube-proxy (0x4000, 0x8000), Tailscale (0x00ff0000) and Istio (low 16 bits).
    fn default() -> Self {
        Self(0xff00_0000)
    }
}

impl fmt::Display for StampMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl FromStr for StampMask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let bits =
            u32::from_str_radix(digits, 16).map_err(|_| "a mask is a hexadecimal number, as 0xff000000".to_owned())?;
        let width = bits.count_ones();
        if !(WIDTH_MIN..=WIDTH_MAX).contains(&width) {
            return Err(format!("a mask has {WIDTH_MIN} to {WIDTH_MAX} bits, this one has {width}"));
        }
        if (bits >> bits.trailing_zeros()).count_ones() != (bits >> bits.trailing_zeros()).trailing_ones() {
            return Err("the bits of a mask are side by side".to_owned());
        }
        if bits & KUBE_PROXY != 0 {
            return Err(format!("kube-proxy uses {KUBE_PROXY:#x}"));
        }
        Ok(Self(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_bits_side_by_side_that_kube_proxy_leaves() {
        let parse = |text: &str| text.parse::<StampMask>();
        let mask = parse("0xff000000").expect("the default");
        assert_eq!((mask, mask.shift(), mask.stamps_max()), (StampMask::default(), 24, 255));
        let mask = parse("3ff0000").expect("without the prefix");
        assert_eq!((mask.shift(), mask.stamps_max(), mask.to_string().as_str()), (16, 1023, "0x03ff0000"));
        for (text, why) in [
            ("zz", "hexadecimal"),
            ("0x0", "has 0"),
            ("0x700000", "has 3"),
            ("0xffff8000", "has 17"),
            ("0xf0f00000", "side by side"),
            ("0x1f000", "kube-proxy"),
            ("0x1ff000000", "hexadecimal"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
