//! From the bytes of one layout to those of another, field by field of the same name.

use std::fmt;

use super::btf::{Leaf, Leaves};

/// A copy of one integer, which may become wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copy {
    from: Leaf,
    to: Leaf,
}

/// What to copy where. Fields that only the new layout has are zero; those that only the old one has are left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conversion {
    copies: Vec<Copy>,
}

/// A field of a key that only one of the two layouts has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoCounterpart(String);

impl fmt::Display for NoCounterpart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the field {} of the key is not the same in both", self.0)
    }
}

impl std::error::Error for NoCounterpart {}

impl Conversion {
    pub(super) fn of_value(old: &Leaves, new: &Leaves) -> Self {
        Self { copies: new.keys().filter_map(|path| copy(old, new, path)).collect() }
    }

    /// A key with a field more or less would stand for something else.
    pub(super) fn of_key(old: &Leaves, new: &Leaves) -> Result<Self, NoCounterpart> {
        let mut fields = old.keys().chain(new.keys()).filter(|path| !is_padding(path));
        match fields.find(|path| copy(old, new, path).is_none()) {
            Some(path) => Err(NoCounterpart(path.clone())),
            None => Ok(Self::of_value(old, new)),
        }
    }

    /// `new` is as large as the new layout.
    pub(super) fn convert(&self, old: &[u8], new: &mut [u8]) {
        new.fill(0);
        for Copy { from, to } in &self.copies {
            let bytes = old.get(from.offset..from.offset + from.size);
            let place = new.get_mut(to.offset..to.offset + to.size);
            if let (Some(bytes), Some(place)) = (bytes, place) {
                widen(bytes, place, from.signed);
            }
        }
    }
}

/// Nothing, where only one of the layouts has the field or it has become narrower.
fn copy(old: &Leaves, new: &Leaves, path: &str) -> Option<Copy> {
    let (from, to) = (*old.get(path)?, *new.get(path)?);
    let fits = from.size == to.size || (from.size < to.size && from.signed == to.signed);
    (fits && !is_padding(path)).then_some(Copy { from, to })
}

/// Padding is named so in every layout (`palisade_common::layout`).
fn is_padding(path: &str) -> bool {
    path.rsplit('.').next().is_some_and(|name| name.starts_with("pad"))
}

fn widen(from: &[u8], to: &mut [u8], signed: bool) {
    let top = if cfg!(target_endian = "little") { from.last() } else { from.first() };
    let fill = if signed && top.is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    to.fill(fill);
    let begin = if cfg!(target_endian = "little") { 0 } else { to.len() - from.len() };
    to[begin..begin + from.len()].copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(fields: &[(&str, usize, usize)]) -> Leaves {
        let leaf = |&(name, offset, size): &(&str, usize, usize)| {
            (name.to_owned(), Leaf { offset, size, signed: name.starts_with("signed") })
        };
        fields.iter().map(leaf).collect()
    }

    #[test]
    fn fields_go_to_where_their_name_is() {
        let old =
            leaves(&[("a", 0, 4), ("b[0]", 4, 2), ("b[1]", 6, 2), ("signed", 8, 2), ("gone", 10, 2), ("pad", 12, 4)]);
        let new =
            leaves(&[("added", 0, 4), ("signed", 4, 4), ("b[1]", 8, 2), ("b[0]", 10, 2), ("a", 16, 8), ("pad", 24, 4)]);
        let mut bytes = [0xee_u8; 28];
        let mut from = [0_u8; 16];
        from[0..4].copy_from_slice(&0x1234_5678_u32.to_ne_bytes());
        from[4..6].copy_from_slice(&1_u16.to_ne_bytes());
        from[6..8].copy_from_slice(&2_u16.to_ne_bytes());
        from[8..10].copy_from_slice(&(-5_i16).to_ne_bytes());
        from[10..16].fill(0xff);
        Conversion::of_value(&old, &new).convert(&from, &mut bytes);
        let mut wanted = [0_u8; 28];
        wanted[4..8].copy_from_slice(&(-5_i32).to_ne_bytes());
        wanted[8..10].copy_from_slice(&2_u16.to_ne_bytes());
        wanted[10..12].copy_from_slice(&1_u16.to_ne_bytes());
        wanted[16..24].copy_from_slice(&0x1234_5678_u64.to_ne_bytes());
        assert_eq!(bytes, wanted);
    }

    /// What has become narrower, or signed, is not the same number any longer.
    #[test]
    fn what_does_not_fit_is_zero() {
        let (old, new) = (leaves(&[("a", 0, 4), ("b", 4, 2)]), leaves(&[("a", 0, 2)]));
        assert_eq!(Conversion::of_value(&old, &new), Conversion::default());
        let signed = Leaves::from([("b".to_owned(), Leaf { offset: 0, size: 4, signed: true })]);
        assert_eq!(Conversion::of_value(&old, &signed), Conversion::default());
    }

    #[test]
    fn keys_have_the_same_fields() {
        let key = leaves(&[("low.words[0]", 0, 4), ("port", 4, 2), ("pad", 6, 2)]);
        let moved = leaves(&[("pad_added[0]", 0, 4), ("port", 4, 4), ("low.words[0]", 8, 4)]);
        let conversion = Conversion::of_key(&key, &moved).expect("padding does not count");
        let mut bytes = [0; 12];
        let from = [7_u32.to_ne_bytes(), [80_u16.to_ne_bytes(), [0xff; 2]].concat().try_into().expect("four bytes")];
        conversion.convert(&from.concat(), &mut bytes);
        assert_eq!(bytes.to_vec(), [0, 80, 7].map(u32::to_ne_bytes).concat());
        let more = leaves(&[("low.words[0]", 0, 4), ("port", 4, 2), ("zone", 6, 2)]);
        let narrow = leaves(&[("low.words[0]", 0, 4), ("port", 4, 1)]);
        for (old, new, name) in [
            (&key, &more, "zone"),
            (&more, &key, "zone"),
            (&key, &narrow, "port"),
            (&key, &leaves(&[]), "low.words[0]"),
        ] {
            assert_eq!(Conversion::of_key(old, new), Err(NoCounterpart(name.to_owned())));
        }
    }
}
