//! Plain values of a type, as expressions: what a function may return instead.

use quote::ToTokens as _;
use syn::{GenericArgument, PathArguments, Type};

/// How many values a tuple's parts are combined to.
const COMBINED_MAX: usize = 4;

/// May hold values that do not type-check: the compiler sorts them out.
pub fn defaults(kind: &Type) -> Vec<String> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    match kind {
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else { return Vec::new() };
            let inner = || generic(&last.arguments).map(defaults).unwrap_or_default();
            let wrapped = |name: &str| inner().into_iter().map(|value| format!("{name}({value})")).collect::<Vec<_>>();
            match last.ident.to_string().as_str() {
                "bool" => owned(&["true", "false"]),
                "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => owned(&["0", "1"]),
                "i8" | "i16" | "i32" | "i64" | "isize" => owned(&["0", "1", "-1"]),
                "String" => owned(&["String::new()", "\"xyzzy\".to_owned()"]),
                "Option" => [owned(&["None"]), wrapped("Some")].concat(),
                "Result" => wrapped("Ok"),
                "Box" | "Rc" => wrapped(&format!("{}::new", last.ident)),
                _ => owned(&["Default::default()"]),
            }
        }
        Type::Reference(reference) if reference.elem.to_token_stream().to_string() == "str" => {
            owned(&["\"\"", "\"xyzzy\""])
        }
        Type::Reference(_) => owned(&["Box::leak(Default::default())"]),
        Type::Tuple(tuple) => {
            let mut all = vec![String::new()];
            for part in &tuple.elems {
                let values = defaults(part);
                all = all.iter().flat_map(|head| values.iter().map(move |value| format!("{head}{value}, "))).collect();
            }
            all.into_iter().take(COMBINED_MAX).map(|parts| format!("({parts})")).collect()
        }
        Type::Array(_) => owned(&["Default::default()"]),
        Type::ImplTrait(_) | Type::Never(_) => Vec::new(),
        _ => owned(&["Default::default()"]),
    }
}

/// The first type of `<…>`.
fn generic(arguments: &PathArguments) -> Option<&Type> {
    let PathArguments::AngleBracketed(arguments) = arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(kind) => Some(kind),
        _ => None,
    })
}
