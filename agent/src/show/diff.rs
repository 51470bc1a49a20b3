//! `palisade maps diff`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::page::show;
use super::style;
use crate::cni::client;
use crate::cni::protocol::Request;
use crate::cni::socket_path;
use crate::config::ShowFlags;
use crate::drift::{Difference, Ingredients, differences};
use crate::exit::Exit;
use crate::kernel::Maps;
use crate::observe;

/// A change may come between two looks, and the catalog is written a moment after it.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// # Errors
///
/// When there is no agent's state to read, or no agent to ask.
pub fn maps_diff(flags: &ShowFlags) -> anyhow::Result<Exit> {
    let maps = Maps::open_pinned(&flags.pin_dir)?;
    let mut differ = compare(&maps, &flags.pin_dir)?;
    for _ in 1..ATTEMPTS {
        if differ.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        differ = compare(&maps, &flags.pin_dir)?;
    }
    show(flags.output, &differ, |page| {
        if differ.is_empty() {
            page.line("no difference");
        }
        for Difference { map, entry, loaded, compiled } in &differ {
            page.line(format_args!("{}{map}{:#} {entry}", style::HEADING, style::HEADING));
            let of = |text: &Option<String>| text.clone().unwrap_or_else(|| "not there".to_owned());
            page.line(format_args!("  loaded    {}{}{:#}", style::BAD, of(loaded), style::BAD));
            page.line(format_args!("  compiled  {}", of(compiled)));
        }
    })?;
    Ok(if differ.is_empty() { Exit::Done } else { Exit::No })
}

fn compare(maps: &Maps, pin_dir: &Path) -> anyhow::Result<Vec<Difference>> {
    let from = ingredients(pin_dir)?;
    Ok(differences(&maps.found()?, &observe::read_catalog(pin_dir)?, from))
}

/// All that the agent's tables are made of.
///
/// # Errors
///
/// When no agent answers.
pub(super) fn ingredients(pin_dir: &Path) -> anyhow::Result<Ingredients> {
    let reply = client::fetch(&socket_path(pin_dir), &Request::Objects).with_context(|| {
        format!("no agent answers with --pin-dir {}, and only it knows all objects", pin_dir.display())
    })?;
    match reply {
        Ok(serde_json::Value::String(text)) => serde_json::from_str(&text).context("the agent's answer"),
        Ok(_) => bail!("the agent is of another version than this command"),
        Err(refusal) => bail!("the agent does not tell its objects: {}", refusal.message),
    }
}
