//! What a YAML document may cost before it is read: the parser itself takes time without bound for deep brackets, and memory
//! without bound for aliases. Found by fuzzing.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Brackets open at once. The parser reads the whole document, at a cost that grows with the square of this, before it says that
/// more than 128 are too many. Those in texts are counted too, hence the margin.
const BRACKETS_MAX: usize = 500;

/// Bytes that a document may stand for when its aliases are followed: as many as it has itself, so many times over, or a megabyte.
const EXPANSION_MAX: usize = 16;
const EXPANDED_MAX: usize = 1 << 20;

/// # Errors
/// It would cost too much to read.
pub fn check(text: &str) -> Result<(), String> {
    let mut open = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > BRACKETS_MAX {
            return Err(format!("more than {BRACKETS_MAX} brackets are open at once"));
        }
    }
    if !(text.contains('&') && text.contains('*')) {
        return Ok(());
    }
    let left = Cell::new(EXPANDED_MAX.max(text.len().saturating_mul(EXPANSION_MAX)));
    let counted = Count { left: &left }.deserialize(serde_norway::Deserializer::from_str(text));
    // Whatever else is wrong with it is told by whoever reads it.
    if counted.is_err() && left.get() == 0 { Err("its aliases make too much of it".to_owned()) } else { Ok(()) }
}

/// Follows a document without keeping anything of it.
#[derive(Clone, Copy)]
struct Count<'a> {
    /// Bytes; 0: too many.
    left: &'a Cell<usize>,
}

impl Count<'_> {
    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        self.left.set(self.left.get().saturating_sub(bytes + 1));
        if self.left.get() == 0 { Err(E::custom("too much")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_bool<E: Error>(self, _flag: bool) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i64<E: Error>(self, _number: i64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u64<E: Error>(self, _number: u64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_f64<E: Error>(self, _number: f64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.take(0)
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.take(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.take(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.take(0)?;
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.take(0)?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    /// A value with a tag.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let ((), value) = tagged.variant_seed(self)?;
        value.newtype_variant_seed(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets() {
        let deep = |count: usize| format!("x: {}{}", "[".repeat(count), "]".repeat(count));
        assert_eq!(check(&deep(BRACKETS_MAX)), Ok(()));
        assert!(check(&deep(BRACKETS_MAX + 1)).is_err());
        assert_eq!(check(&"- {a: [1]}\n".repeat(10_000)), Ok(()), "many, but one after the other");
    }

    #[test]
    fn aliases() {
        let document = |keys: usize, uses: usize| {
            let keys: String = (0..keys).map(|key| format!("k{key}: 1, ")).collect();
            format!("a: &a {{{keys}}}\nb:\n{}", "- *a\n".repeat(uses))
        };
        assert_eq!(check(&document(20, 100)), Ok(()));
        assert!(check(&document(2000, 2000)).is_err());
        let text = format!("a: &a [{}]\nb:\n{}", "x".repeat(20_000), "- *a\n".repeat(2000));
        assert!(check(&text).is_err(), "long texts count by their length");
        let tagged = format!("a: &a !t [{}]\nb:\n{}", "x, ".repeat(20_000), "- *a\n".repeat(2000));
        assert!(check(&tagged).is_err(), "behind a tag too");
        assert_eq!(check("a: &a [1]\nb: *a\nc: }"), Ok(()), "what does not parse is no affair of this");
    }
}
