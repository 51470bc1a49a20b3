//! Writes that fail: counted, and for tests made to fail.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context as _;

use super::maps::Maps;
use crate::tables::plan::Write;

#[derive(Debug, Default)]
pub(super) struct Trouble {
    failed: u64,
    /// Errors to come, by the number of the write from now; none but in tests.
    planned: BTreeMap<usize, i32>,
}

impl Trouble {
    pub(super) fn write(&mut self, maps: &mut Maps, write: &Write) -> anyhow::Result<()> {
        let result = match self.next() {
            Some(error) => Err(io::Error::from_raw_os_error(error)).with_context(|| format!("{write:?}")),
            None => maps.write(write),
        };
        self.failed += u64::from(result.is_err());
        result
    }

    /// Carries writes out in their order, at least the first one or none. How many were, and the error of the next one.
    pub(super) fn write_leading(&mut self, maps: &mut Maps, writes: &[Write]) -> (usize, anyhow::Result<()>) {
        let fine = self.planned.first_key_value().map_or(usize::MAX, |(at, _)| *at);
        if fine == 0 || writes.is_empty() {
            return (0, writes.first().map_or(Ok(()), |write| self.write(maps, write)));
        }
        match maps.write_leading(&writes[..writes.len().min(fine)]) {
            Ok(done) => {
                self.pass(done);
                (done, Ok(()))
            }
            Err((done, error)) => {
                self.failed += 1;
                self.pass(done + 1);
                (done, Err(error))
            }
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) fn plan(&mut self, failures: impl IntoIterator<Item = (usize, i32)>) {
        self.planned = failures.into_iter().collect();
    }

    fn next(&mut self) -> Option<i32> {
        let now = self.planned.remove(&0);
        self.pass(1);
        now
    }

    fn pass(&mut self, writes: usize) {
        if !self.planned.is_empty() {
            let planned = std::mem::take(&mut self.planned);
            self.planned =
                planned.into_iter().filter_map(|(at, error)| Some((at.checked_sub(writes)?, error))).collect();
        }
    }
}
