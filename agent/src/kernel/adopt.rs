//! Reads what an earlier agent left in the pinned maps, and makes it whole (see [`crate::tables::adopted`]).

use super::maps::Maps;
use crate::tables::adopted::{Adopted, adopted};
use crate::tables::plan::Installed;

pub(super) fn installed(maps: &mut Maps) -> anyhow::Result<Installed> {
    let Adopted { writes, epoch, tables, records } = adopted(maps.found()?);
    for write in &writes {
        maps.write(write)?;
    }
    Ok(Installed::adopt(epoch, maps.records_len(), tables, records))
}
