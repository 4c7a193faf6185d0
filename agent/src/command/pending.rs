//! Commands that are written elsewhere; this file goes when they arrive.

use anyhow::bail;

pub(super) fn ps() -> anyhow::Result<()> {
    bail!("`ps` is not built in")
}

pub(super) fn doctor() -> anyhow::Result<()> {
    bail!("`doctor` is not built in")
}

pub(super) fn record() -> anyhow::Result<()> {
    bail!("`record` is not built in")
}
