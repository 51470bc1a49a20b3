//! Decoding that never fails on a well-formed text: a field of an unexpected shape is [`Lax::Wrong`], and decoding goes on.
//!
//! A list from the API server is decoded page by page, so one field that was strict could keep thousands of objects out.
//! What is not wanted is skipped as it streams by, without being built.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A field: not there (or null), as expected, or something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lax<T> {
    #[default]
    Missing,
    Found(T),
    Wrong,
}

impl<T> Lax<T> {
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(value) => Some(value),
            Self::Missing | Self::Wrong => None,
        }
    }

    pub fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong)
    }
}

/// What a value of this type may be made from; anything else is drained and refused.
pub trait Shape<'de>: Sized {
    fn from_text(_text: &str) -> Option<Self> {
        None
    }

    fn from_flag(_flag: bool) -> Option<Self> {
        None
    }

    fn from_number(_number: i64) -> Option<Self> {
        None
    }

    /// # Errors
    /// Only for a text that is not well-formed.
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    /// # Errors
    /// Only for a text that is not well-formed.
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// A structure whose fields are all [`Lax`], decoded from a map and from nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record<T>(pub T);

// === impl Shape ===

impl Shape<'_> for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape<'_> for bool {
    fn from_flag(flag: bool) -> Option<Self> {
        Some(flag)
    }
}

impl Shape<'_> for i64 {
    fn from_number(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl<'de, T: Deserialize<'de>> Shape<'de> for Vec<T> {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

impl<'de, T: Deserialize<'de>> Shape<'de> for BTreeMap<String, T> {
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut entries = Self::new();
        while let Some((key, value)) = map.next_entry()? {
            entries.insert(key, value);
        }
        Ok(Some(entries))
    }
}

impl<'de, T: Deserialize<'de>> Shape<'de> for Record<T> {
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|record| Some(Self(record)))
    }
}

// === impl Lax ===

impl<'de, T: Shape<'de>> Deserialize<'de> for Lax<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LaxVisitor(PhantomData))
    }
}

struct LaxVisitor<T>(PhantomData<T>);

fn found<T>(value: Option<T>) -> Lax<T> {
    value.map_or(Lax::Wrong, Lax::Found)
}

impl<'de, T: Shape<'de>> Visitor<'de> for LaxVisitor<T> {
    type Value = Lax<T>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Lax<T>, E> {
        Ok(found(T::from_flag(flag)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Lax<T>, E> {
        Ok(found(T::from_number(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Lax<T>, E> {
        Ok(found(i64::try_from(number).ok().and_then(T::from_number)))
    }

    fn visit_f64<E>(self, _number: f64) -> Result<Lax<T>, E> {
        Ok(Lax::Wrong)
    }

    fn visit_str<E>(self, text: &str) -> Result<Lax<T>, E> {
        Ok(found(T::from_text(text)))
    }

    fn visit_unit<E>(self) -> Result<Lax<T>, E> {
        Ok(Lax::Missing)
    }

    fn visit_none<E>(self) -> Result<Lax<T>, E> {
        Ok(Lax::Missing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Lax<T>, A::Error> {
        T::from_list(list).map(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lax<T>, A::Error> {
        T::from_map(map).map(found)
    }
}
