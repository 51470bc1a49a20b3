//! Another layout of the tables, so that tests can change from one version to another and back (feature `layout-test`): fields in the
//! opposite order, and one more.

/// By how many bytes each of the structs is larger.
#[cfg(not(feature = "layout-test"))]
pub(super) const ADDED: usize = 0;
#[cfg(feature = "layout-test")]
pub(super) const ADDED: usize = 8;

/// The struct as it is written.
#[cfg(not(feature = "layout-test"))]
macro_rules! permuted {
    ($item:item) => {
        $item
    };
}

/// The struct with its fields from the last to the first and one more in front.
#[cfg(feature = "layout-test")]
macro_rules! permuted {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $kind:ty,)* }) => {
        permuted!(@ [$(#[$about])* pub struct $name] [] $([$(#[$doc])* pub $field: $kind])*);
    };
    (@ $head:tt [$($done:tt)*] $field:tt $($rest:tt)*) => {
        permuted!(@ $head [$field $($done)*] $($rest)*);
    };
    (@ [$($head:tt)*] [$([$($field:tt)*])*]) => {
        $($head)* {
            /// As a later version may have it; zero.
            pub pad_added: [u32; 2],
            $($($field)*,)*
        }
    };
}
