//! What holds carriers, and what is near a limit? For a person.

use std::fmt;

use crate::{
    explain::{
        by_allocator,
        model::{Explanation, Pinned, Tagged},
    },
    limits::{GroupFacts, LimitFacts},
    report::{
        Options, label,
        page::{Page, of, table},
        unit::{self, Units},
    },
};

/// Carriers that hold less than this share of the RSS are not shown.
const SMALL_SHARE: f64 = 0.001;
/// Kinds of blocks that are named in a row.
const KINDS: usize = 2;
/// Widths of what has names in it.
const WHAT: usize = 44;
const GROUP: usize = 40;

/// The table of carriers that are held by few blocks, where they hold much.
pub(super) fn pinned(page: &mut Page<'_>, explanation: &Explanation, options: Options) -> fmt::Result {
    let mut rows = by_allocator(&explanation.instances, |sum: &mut Pinned, facts| sum.add(&facts.pinned));
    let least = SMALL_SHARE * explanation.resident as f64;
    rows.retain(|(_, pinned)| pinned.resident_free > 0 && pinned.resident_free as f64 >= least);
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by_key(|(_, pinned)| std::cmp::Reverse(pinned.resident_free));
    let shown = rows.len().min(options.top);
    let below = format!("{:.0} %", 100.0 * Pinned::BELOW);
    page.heading(&format!("Carriers held by few blocks: less than {below} of each is used{}", of(shown, rows.len())))?;
    let mut table = table(&["allocator", "carriers", "resident free", "blocks", "what the blocks are"], 1..4);
    for (name, pinned) in rows.iter().take(shown) {
        table.add_row([
            label::clean(name),
            unit::count(pinned.carriers),
            options.units.bytes(pinned.resident_free),
            unit::count(pinned.blocks),
            label::shorten(&label::clean(&what(pinned, options.units)), WHAT),
        ]);
    }
    page.table(&table)
}

/// What the blocks are: by their tags where most have one, or else by their size. Blocks of several allocators can be in one
/// carrier, since it may come from another one through the pool.
fn what(pinned: &Pinned, units: Units) -> String {
    if pinned.walked == 0 {
        return "not looked at".to_owned();
    }
    let name = |kind: &Tagged| {
        let [origin, name] = [&kind.origin, &kind.kind].map(|name| name.as_deref().unwrap_or("?"));
        format!("{origin} {name}")
    };
    let tagged = pinned.kinds.iter().fold(0_u64, |sum, kind| sum.saturating_add(kind.blocks));
    if tagged >= pinned.blocks.div_ceil(2) {
        return pinned.kinds.iter().take(KINDS).map(name).collect::<Vec<_>>().join(", ");
    }
    let most = pinned.sizes.iter().max_by_key(|(from, blocks, _)| (*blocks, std::cmp::Reverse(*from)));
    most.map_or_else(String::new, |(from, ..)| {
        format!("most without tags, of {} to {}", units.bytes(from), units.bytes(from.saturating_mul(2)))
    })
}

/// What the VM has tables of, and the limits of the process.
pub(super) fn limits(page: &mut Page<'_>, explanation: &Explanation, units: Units) -> fmt::Result {
    let Explanation { vm, limits, .. } = explanation;
    if vm.processes.is_none() && vm.ports.is_none() && vm.atoms.is_none() && limits.is_none() {
        return Ok(());
    }
    page.heading("Tables and limits")?;
    for (name, table) in [("processes", vm.processes), ("ports", vm.ports)] {
        let Some(table) = table else { continue };
        let (used, limit) = (unit::count(table.used), unit::count(table.limit));
        page.field(name, &format!("{used} of {limit} at most, in a table of {}", units.bytes(table.table_bytes)))?;
    }
    if let Some(atoms) = vm.atoms {
        page.field("atoms", &format!("{} of {} at most", unit::count(atoms.used), unit::count(atoms.limit)))?;
    }
    let Some(LimitFacts { open_files, most_open_files, address_space, most_address_space, group }) = limits else {
        return Ok(());
    };
    if let Some(open) = open_files {
        page.field("files", &format!("{} open{}", unit::count(*open), at_most(*most_open_files, unit::count)))?;
    }
    if let Some(bytes) = address_space {
        let most = at_most(*most_address_space, |bytes| units.bytes(bytes));
        page.field("addresses", &format!("{} in use or reserved{most}", units.bytes(*bytes)))?;
    }
    group.as_ref().map_or(Ok(()), |group| self::group(page, group, units))
}

fn at_most(most: Option<u64>, figure: impl Fn(u64) -> String) -> String {
    most.map_or_else(|| ", no limit".to_owned(), |most| format!(" of {} at most", figure(most)))
}

fn group(page: &mut Page<'_>, group: &GroupFacts, units: Units) -> fmt::Result {
    let path = |path: &str| label::shorten(&label::clean(path), GROUP);
    let current = group.current.map_or_else(|| "?".to_owned(), |bytes| units.bytes(bytes));
    page.field("group", &format!("{current} in {}", path(&group.path)))?;
    match &group.tightest {
        Some(tightest) if tightest.path == group.path => {
            page.field("", &format!("limit {}", units.bytes(tightest.max)))?;
        }
        Some(tightest) => {
            let current = tightest.current.map(|bytes| format!(", {} in use", units.bytes(bytes))).unwrap_or_default();
            page.field("", &format!("limit {} of {}{current}", units.bytes(tightest.max), path(&tightest.path)))?;
        }
        None => page.field("", "no limit")?,
    }
    let stat = &group.stat;
    let parts = [
        ("anonymous", stat.anon),
        ("files", stat.file),
        ("shared", stat.shmem),
        ("sockets", stat.sock),
        ("kernel", stat.kernel),
        ("swapped", group.swap_current),
    ];
    let parts = parts.into_iter().filter_map(|(name, bytes)| Some((name, bytes.filter(|bytes| *bytes > 0)?)));
    let parts: Vec<_> = parts.map(|(name, bytes)| format!("{name} {}", units.bytes(bytes))).collect();
    if !parts.is_empty() {
        page.field("", &parts.join(", "))?;
    }
    let events = [("limit hit", group.limit_hits), ("out of memory", group.oom), ("processes killed", group.oom_kill)];
    let events = events.into_iter().filter_map(|(name, times)| Some((name, times.filter(|times| *times > 0)?)));
    let events: Vec<_> = events.map(|(name, times)| format!("{name}: {}", unit::count(times))).collect();
    if events.is_empty() { Ok(()) } else { page.field("", &events.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        explain::model::{AtomFacts, InstanceFacts, TableFacts, VmFacts},
        limits::{GroupLimit, GroupStat},
    };

    fn explanation() -> Explanation {
        let kind = |origin: &str, kind: &str, blocks| Tagged {
            origin: Some(origin.into()),
            kind: Some(kind.into()),
            blocks,
            ..Tagged::default()
        };
        let pinned = |carriers, resident_free, kinds: Vec<Tagged>| {
            let mut pinned =
                Pinned { carriers, resident_free, blocks: 3 * carriers, walked: carriers, ..Pinned::default() };
            for _ in 0..3 {
                pinned.sizes.add(100);
            }
            InstanceFacts { pinned: Pinned { kinds, ..pinned }, ..InstanceFacts::default() }
        };
        let named = |allocator: &str, number, facts| InstanceFacts { allocator: allocator.into(), number, ..facts };
        let driver = vec![kind("re2", "nif_internal", 9), kind("system", "port", 2), kind("system", "driver", 1)];
        let binary = || vec![kind("system", "binary", 5)];
        Explanation {
            resident: 1 << 30,
            instances: vec![
                named("ets_alloc", 1, pinned(40, 500 << 20, Vec::new())),
                named("binary_alloc", 2, pinned(2, 8 << 20, binary())),
                named("binary_alloc", 2, pinned(3, 9 << 20, binary())),
                named("driver_alloc", 3, pinned(4, 2 << 20, driver)),
                named("std_alloc", 4, pinned(1, 1000, Vec::new())),
            ],
            vm: VmFacts {
                processes: Some(TableFacts { used: 48, limit: 262_144, table_bytes: 3 << 20 }),
                ports: None,
                atoms: Some(AtomFacts { used: 9_512, limit: 1 << 20 }),
            },
            limits: Some(LimitFacts {
                open_files: Some(12),
                most_open_files: Some(20_000),
                address_space: Some(2 << 30),
                most_address_space: None,
                group: Some(GroupFacts {
                    version: 2,
                    path: "/k8s/pod1/c".into(),
                    current: Some(300 << 20),
                    tightest: Some(GroupLimit { path: "/k8s/pod1".into(), max: 1 << 30, current: Some(700 << 20) }),
                    stat: GroupStat {
                        anon: Some(250 << 20),
                        file: Some(50 << 20),
                        sock: Some(0),
                        ..GroupStat::default()
                    },
                    oom_kill: Some(2),
                    ..GroupFacts::default()
                }),
            }),
            ..Explanation::default()
        }
    }

    fn shown(explanation: &Explanation) -> String {
        let mut text = String::new();
        let mut page = Page::new(&mut text);
        pinned(&mut page, explanation, Options::default()).expect("a String takes everything");
        limits(&mut page, explanation, Units::Iec).expect("a String takes everything");
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn what_holds_carriers_and_what_is_near_a_limit() {
        let expected = "
Carriers held by few blocks: less than 25 % of each is used
allocator     carriers  resident free  blocks  what the blocks are
ets_alloc           40      500.0 MiB     120  most without tags, of 64 B to 128 B
binary_alloc         5       17.0 MiB      15  system binary
driver_alloc         4        2.0 MiB      12  re2 nif_internal, system port

Tables and limits
processes  48 of 262,144 at most, in a table of 3.0 MiB
atoms      9,512 of 1,048,576 at most
files      12 open of 20,000 at most
addresses  2.0 GiB in use or reserved, no limit
group      300.0 MiB in /k8s/pod1/c
           limit 1.0 GiB of /k8s/pod1, 700.0 MiB in use
           anonymous 250.0 MiB, files 50.0 MiB
           processes killed: 2
";
        assert_eq!(shown(&explanation()), expected);
        assert_eq!(shown(&Explanation::default()), "");
    }

    #[test]
    fn long_names_stay_in_the_page() {
        let mut explanation = explanation();
        for facts in &mut explanation.instances {
            for kind in &mut facts.pinned.kinds {
                kind.origin = Some("long".repeat(60));
            }
        }
        let group = explanation.limits.as_mut().and_then(|limits| limits.group.as_mut()).expect("a group");
        group.path = "/kubepods.slice".repeat(20);
        let text = shown(&explanation);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
