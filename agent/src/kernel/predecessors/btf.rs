//! The kernel's description of types (BTF, Documentation/bpf/btf.rst), as far as the maps' keys and values need it: which fields there are,
//! and where each lies.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

const MAGIC: u16 = 0xeb9f;
/// Structs within structs and arrays; more than any layout has.
const DEPTH_MAX: usize = 16;
const LEAVES_MAX: usize = 4096;

// linux/btf.h: BTF_KIND_*
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// An integer of a type, in bytes from its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Leaf {
    pub(super) offset: usize,
    pub(super) size: usize,
    pub(super) signed: bool,
}

/// The integers of a type by their path: `judged[0][1].epoch`; of a type that is an integer itself, the path is empty.
pub(super) type Leaves = BTreeMap<String, Leaf>;

/// One type as it lies in the blob, without its name.
#[derive(Clone, Copy, Debug)]
struct Type {
    kind: u32,
    /// The number of members or the like.
    len: usize,
    /// A size in bytes or another type's number, by kind.
    size_or_type: u32,
    /// Where what is particular to the kind begins.
    at: usize,
}

/// A blob of types in this machine's byte order, as BPF_OBJ_GET_INFO_BY_FD gives it and as it is in an object.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    strings: &'a [u8],
    bytes: &'a [u8],
    /// By number, from 1.
    types: Vec<Type>,
}

fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).context("the BTF ends early")?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn place(bytes: &[u8], at: usize) -> anyhow::Result<usize> {
    Ok(usize::try_from(word(bytes, at)?)?)
}

impl<'a> Btf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> anyhow::Result<Self> {
        ensure!(word(bytes, 0)? as u16 == MAGIC, "no BTF of this machine's byte order");
        let header = place(bytes, 4)?;
        let part = |at: usize| -> anyhow::Result<&'a [u8]> {
            let begin = header.saturating_add(place(bytes, at)?);
            bytes.get(begin..begin.saturating_add(place(bytes, at + 4)?)).context("the BTF ends early")
        };
        let (described, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        let mut at = 0;
        while at < described.len() {
            let info = word(described, at + 4)?;
            let (kind, len) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            types.push(Type { kind, len, size_or_type: word(described, at + 8)?, at: at + 12 });
            at += 12 + particular(kind, len);
        }
        Ok(Self { strings, bytes: described, types })
    }

    /// Where the integers of a type lie.
    ///
    /// # Errors
    ///
    /// When it has something else than integers, structs and arrays in it.
    pub(super) fn leaves(&self, number: u32) -> anyhow::Result<Leaves> {
        let mut leaves = Leaves::new();
        self.walk(number, (String::new(), 0), DEPTH_MAX, &mut leaves)?;
        Ok(leaves)
    }

    fn walk(
        &self,
        number: u32,
        (path, offset): (String, usize),
        depth: usize,
        leaves: &mut Leaves,
    ) -> anyhow::Result<()> {
        ensure!(depth > 0 && leaves.len() < LEAVES_MAX, "{path} is nested too deep or too large");
        let this = self.get(number)?;
        match this.kind {
            INT => {
                const SIGNED: u32 = 1 << 24;
                let signed = word(self.bytes, this.at)? & SIGNED != 0;
                leaves.insert(path, Leaf { offset, size: this.size_or_type as usize, signed });
            }
            STRUCT => {
                for member in 0..this.len {
                    let at = this.at + member * 12;
                    let (name, kind, bits) =
                        (word(self.bytes, at)?, word(self.bytes, at + 4)?, place(self.bytes, at + 8)?);
                    let name = self.name(name)?;
                    ensure!(bits.is_multiple_of(8) && bits < 1 << 24, "{name} is a bit field");
                    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    self.walk(kind, (path, offset + bits / 8), depth - 1, leaves)?;
                }
            }
            ARRAY => {
                let (element, count) = (word(self.bytes, this.at)?, place(self.bytes, this.at + 8)?);
                let size = self.size(element, depth)?;
                for index in 0..count {
                    self.walk(element, (format!("{path}[{index}]"), offset + index * size), depth - 1, leaves)?;
                }
            }
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                self.walk(this.size_or_type, (path, offset), depth - 1, leaves)?;
            }
            kind => bail!("{path} is of BTF kind {kind}, which no table has"),
        }
        Ok(())
    }

    /// In bytes.
    fn size(&self, number: u32, depth: usize) -> anyhow::Result<usize> {
        ensure!(depth > 0, "type {number} is nested too deep");
        let this = self.get(number)?;
        match this.kind {
            INT | STRUCT => Ok(this.size_or_type as usize),
            ARRAY => {
                let (element, count) = (word(self.bytes, this.at)?, place(self.bytes, this.at + 8)?);
                self.size(element, depth - 1)?.checked_mul(count).context("an array is too large")
            }
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => self.size(this.size_or_type, depth - 1),
            kind => bail!("type {number} is of BTF kind {kind}, which no table has"),
        }
    }

    fn get(&self, number: u32) -> anyhow::Result<Type> {
        let place = usize::try_from(number)?.checked_sub(1);
        place.and_then(|place| self.types.get(place)).copied().with_context(|| format!("the BTF has no type {number}"))
    }

    fn name(&self, at: u32) -> anyhow::Result<&str> {
        let bytes = self.strings.get(at as usize..).context("the BTF ends early")?;
        Ok(std::ffi::CStr::from_bytes_until_nul(bytes)?.to_str()?)
    }
}

/// How many bytes follow the common part.
const fn particular(kind: u32, len: usize) -> usize {
    match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => len * 12,
        ENUM | FUNC_PROTO => len * 8,
        _ => 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A blob that is put together type by type.
    #[derive(Default)]
    pub(in super::super) struct Blob {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Blob {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn add(&mut self, name: &str, (kind, len): (u32, usize), size_or_type: u32, more: &[u32]) -> u32 {
            let name = self.name(name);
            let words = [name, kind << 24 | len as u32, size_or_type];
            self.types.extend(words.iter().chain(more).flat_map(|word| word.to_ne_bytes()));
            self.count += 1;
            self.count
        }

        pub(in super::super) fn int(&mut self, size: u32, signed: bool) -> u32 {
            self.add("int", (INT, 0), size, &[(u32::from(signed) << 24) + size * 8])
        }

        pub(in super::super) fn array(&mut self, element: u32, count: u32) -> u32 {
            self.add("", (ARRAY, 0), 0, &[element, element, count])
        }

        /// Members: name, type, offset in bytes.
        pub(in super::super) fn structure(&mut self, size: u32, members: &[(&str, u32, u32)]) -> u32 {
            let more: Vec<u32> =
                members.iter().flat_map(|(name, kind, offset)| [self.name(name), *kind, offset * 8]).collect();
            self.add("s", (STRUCT, members.len()), size, &more)
        }

        pub(in super::super) fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let header = [u32::from(MAGIC) | 1 << 16, 24, 0, types, types, strings];
            header
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .chain(self.types.clone())
                .chain(self.strings.clone())
                .collect()
        }
    }

    fn leaf(offset: usize, size: usize) -> Leaf {
        Leaf { offset, size, signed: false }
    }

    #[test]
    fn fields_of_structs_and_arrays_are_found_where_they_lie() {
        let mut blob = Blob::default();
        let (half, word, signed) = (blob.int(2, false), blob.int(4, false), blob.int(4, true));
        let inner = blob.structure(8, &[("epoch", word, 0), ("small", half, 4)]);
        let row = blob.array(inner, 2);
        let rows = blob.array(row, 2);
        let alias = blob.add("alias", (TYPEDEF, 0), rows, &[]);
        let outer = blob.structure(40, &[("judged", alias, 0), ("netns", signed, 32), ("port", half, 36)]);
        let bytes = blob.bytes();
        let leaves = Btf::parse(&bytes).expect("it is whole").leaves(outer).expect("integers only");
        assert_eq!(leaves.len(), 10);
        assert_eq!(leaves["judged[0][1].epoch"], leaf(8, 4));
        assert_eq!(leaves["judged[1][0].small"], leaf(20, 2));
        assert_eq!(leaves["netns"], Leaf { signed: true, ..leaf(32, 4) });
        assert_eq!(leaves["port"], leaf(36, 2));
        let alone = Btf::parse(&bytes).expect("it is whole").leaves(word).expect("an integer");
        assert_eq!(alone, Leaves::from([(String::new(), leaf(0, 4))]));
    }

    /// Other kinds stand between; each is as long as it is.
    #[test]
    fn what_no_table_has_is_passed_over_and_refused() {
        let mut blob = Blob::default();
        let word = blob.int(4, false);
        let pointer = blob.add("", (2, 0), word, &[]);
        blob.add("e", (ENUM, 2), 4, &[0; 4]);
        blob.add("d", (DATASEC, 1), 4, &[0; 3]);
        blob.add("f", (FUNC_PROTO, 1), 0, &[0; 2]);
        blob.add("v", (VAR, 0), word, &[0]);
        let last = blob.structure(4, &[("field", word, 0)]);
        let bad = blob.structure(8, &[("to", pointer, 0)]);
        let bytes = blob.bytes();
        let btf = Btf::parse(&bytes).expect("it is whole");
        assert_eq!(btf.leaves(last).expect("an integer"), Leaves::from([("field".to_owned(), leaf(0, 4))]));
        btf.leaves(bad).expect_err("a pointer");
        btf.leaves(99).expect_err("there is none");
        btf.leaves(0).expect_err("void");
        for length in 0..bytes.len() {
            // Cut anywhere, it is refused or says less, and nothing panics.
            if let Ok(btf) = Btf::parse(&bytes[..length]) {
                let _ = btf.leaves(last);
            }
        }
    }

    #[test]
    fn types_that_hold_themselves_end() {
        let mut blob = Blob::default();
        let around = blob.array(1, 2);
        let bytes = blob.bytes();
        Btf::parse(&bytes).expect("it is whole").leaves(around).expect_err("it never ends");
    }
}
