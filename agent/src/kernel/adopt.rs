//! Reads what an earlier agent left in the pinned maps, and makes it whole (see [`crate::tables::adopted`]).

use super::maps::Maps;
use crate::tables::adopted::{Adopted, adopted};
use crate::tables::plan::{Installed, Write};

/// `beyond`: an epoch that judgements may have been made at which were taken over from elsewhere.
pub(super) fn installed(maps: &mut Maps, beyond: Option<u32>) -> anyhow::Result<Installed> {
    let Adopted { writes, mut epoch, tables, records } = adopted(maps.found()?);
    for write in &writes {
        maps.write(write)?;
    }
    if let Some(beyond) = beyond.filter(|beyond| beyond.wrapping_sub(epoch) as i32 >= 0) {
        // Nothing waits for an epoch by now.
        epoch = beyond.wrapping_add(1);
        maps.write(&Write::Epoch(epoch))?;
    }
    Ok(Installed::adopt(epoch, maps.records_len(), tables, records))
}
