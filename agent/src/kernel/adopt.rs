//! Reads what an earlier agent left in the pinned maps, and makes it whole (see [`crate::tables::adopted`]).

use super::maps::Maps;
use crate::tables::adopted::{Adopted, Found, adopted};
use crate::tables::plan::Installed;

pub(super) fn installed(maps: &mut Maps) -> anyhow::Result<Installed> {
    let snapshot = maps.snapshot(false)?;
    let Adopted { writes, epoch, tables, records } = adopted(Found {
        epoch: maps.config.epoch(),
        endpoints: snapshot.endpoints,
        records: snapshot.records,
        exact_v4: snapshot.exact_v4,
        exact_v6: snapshot.exact_v6,
        cidr_v4: snapshot.cidr_v4,
        cidr_v6: snapshot.cidr_v6,
        rules: snapshot.rules,
        ports: snapshot.ports,
    });
    for write in &writes {
        maps.write(write)?;
    }
    Ok(Installed::adopt(epoch, maps.records_len(), tables, records))
}
