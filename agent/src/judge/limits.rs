//! Is it a static table, a limit or the page cache?

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId,
    thresholds::{FILES_SHARE, NEAR_LIMIT, STATIC_SHARE, WASTE_BYTES},
};
use crate::{
    explain::{model::Explanation, owner::Owner},
    wording::{label, unit::Units},
};

const IEC: Units = Units::Iec;

/// Something that is near its limit, or explains much of the RSS.
struct Finding {
    subject: String,
    summary: String,
    fact: Fact,
    bytes: u64,
    next: &'static str,
}

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::Limits);
    let Some(look) = case.last_look() else {
        return Verdict {
            summary: "limits and tables were not looked at".into(),
            next: vec![case.explain()],
            ..verdict
        };
    };
    let found: Vec<Finding> =
        [group(look), tables(look), open_files(look), big_tables(case, look), stacks(case), files(case)]
            .into_iter()
            .flatten()
            .collect();
    let mut found = found.into_iter();
    let Some(first) = found.next() else {
        return Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::High),
            summary: "no table, limit, stack or file explains the memory".into(),
            evidence: seen(look),
            ..verdict
        };
    };
    let (mut evidence, mut next) = (vec![first.fact], vec![first.next.to_owned()]);
    for other in found {
        evidence.push(other.fact);
        next.push(other.next.to_owned());
    }
    evidence.extend(seen(look));
    next.dedup();
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(Confidence::High),
        bytes: first.bytes,
        subject: Some(first.subject),
        summary: first.summary,
        evidence,
        next,
        ..verdict
    }
}

/// What was looked at, as far as it is known.
fn seen(look: &Explanation) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (name, table) in [("processes", look.vm.processes), ("ports", look.vm.ports)] {
        if let Some(table) = table {
            let fact = format!("{name}, of at most {}", table.limit);
            facts.push(Fact::new(fact, Amount::Count(table.used), "memory"));
        }
    }
    if let Some(atoms) = look.vm.atoms {
        facts.push(Fact::new(format!("atoms, of at most {}", atoms.limit), Amount::Count(atoms.used), "memory"));
    }
    let Some(limits) = &look.limits else { return facts };
    if let (Some(open), Some(most)) = (limits.open_files, limits.most_open_files) {
        facts.push(Fact::new(format!("open files, of at most {most}"), Amount::Count(open), "limits"));
    }
    if let Some(group) = &limits.group {
        if let Some(current) = group.current {
            facts.push(Fact::new("memory of the control group", Amount::Bytes(current), "cgroup"));
        }
        if let Some(tightest) = &group.tightest {
            facts.push(Fact::new("the limit on it", Amount::Bytes(tightest.max), "cgroup"));
        }
        if let Some(killed) = group.oom_kill.filter(|killed| *killed > 0) {
            facts.push(Fact::new("processes killed at the limit so far", Amount::Count(killed), "cgroup"));
        }
    }
    facts
}

fn near(used: u64, limit: u64) -> bool {
    limit > 0 && used as f64 >= NEAR_LIMIT.value * limit as f64
}

fn percent(used: u64, limit: u64) -> f64 {
    100.0 * used as f64 / limit.max(1) as f64
}

/// The control group's memory is nearly used up.
fn group(look: &Explanation) -> Option<Finding> {
    let group = look.limits.as_ref()?.group.as_ref()?;
    let limit = group.tightest.as_ref()?;
    let current = limit.current.or(group.current)?;
    let file = group.stat.file.unwrap_or(0);
    let path = label::clean(&limit.path);
    near(current, limit.max).then(|| {
        let cache = if file as f64 >= FILES_SHARE.value * current as f64 {
            format!("; {} of it are page cache, which the kernel takes back first", IEC.bytes(file))
        } else {
            String::new()
        };
        Finding {
            subject: format!("control group {path}"),
            summary: format!(
                "the control group {path} uses {} of {} ({:.0} %){cache}",
                IEC.bytes(current),
                IEC.bytes(limit.max),
                percent(current, limit.max)
            ),
            fact: Fact::new("part of the control group's limit in use", Amount::Share(current as f64 / limit.max.max(1) as f64), "cgroup"),
            bytes: current,
            next: "raise memory.max (in Kubernetes: resources.limits.memory), or give the node less to do; at the limit the kernel kills it without a dump",
        }
    })
}

/// A table of the VM is nearly full.
fn tables(look: &Explanation) -> Option<Finding> {
    let tables = [
        (
            "processes",
            look.vm.processes.map(|table| (table.used, table.limit)),
            "erl +P 1048576  # or find out who spawns: recon:proc_count(reductions, 5).",
        ),
        (
            "ports",
            look.vm.ports.map(|table| (table.used, table.limit)),
            "erl +Q 262144  # or find out who opens ports: recon:port_types().",
        ),
        (
            "atoms",
            look.vm.atoms.map(|atoms| (atoms.used, atoms.limit)),
            "erl +t 2097152  # or find out who makes atoms: binary_to_existing_atom/1 makes none",
        ),
    ];
    tables.into_iter().find_map(|(name, table, next)| {
        let (used, limit) = table.filter(|(used, limit)| near(*used, *limit))?;
        Some(Finding {
            subject: format!("table of {name}"),
            summary: format!("the table of {name} is {:.0} % full: {used} of {limit}", percent(used, limit)),
            fact: Fact::new(format!("{name}, of at most {limit}"), Amount::Count(used), "memory"),
            bytes: 0,
            next,
        })
    })
}

fn open_files(look: &Explanation) -> Option<Finding> {
    let limits = look.limits.as_ref()?;
    let (open, most) = (limits.open_files?, limits.most_open_files?);
    near(open, most).then(|| Finding {
        subject: "open files".into(),
        summary: format!("{open} of {most} files are open ({:.0} %)", percent(open, most)),
        fact: Fact::new("open files", Amount::Count(open), "limits"),
        bytes: 0,
        next: "ulimit -n 65536  # before the node starts, or find out who opens files: recon:port_types().",
    })
}

/// The tables themselves are large, whatever is in them.
fn big_tables(case: &Case<'_>, look: &Explanation) -> Option<Finding> {
    let bytes = [look.vm.processes, look.vm.ports]
        .into_iter()
        .flatten()
        .fold(0_u64, |sum, table| sum.saturating_add(table.table_bytes));
    is_much(case, bytes, STATIC_SHARE.value).then(|| Finding {
        subject: "tables of processes and ports".into(),
        summary: format!(
            "the tables of processes and ports take {}, full or empty: they have their size from the start",
            IEC.bytes(bytes)
        ),
        fact: Fact::new("bytes of the tables", Amount::Bytes(bytes), "memory"),
        bytes,
        next: "erl +Q 65536 +P 262144  # the port table is as large as ulimit -n where +Q does not say otherwise",
    })
}

fn stacks(case: &Case<'_>) -> Option<Finding> {
    let bytes = case.owned(|owner| *owner == Owner::Stacks);
    is_much(case, bytes, STATIC_SHARE.value).then(|| Finding {
        subject: "stacks of threads".into(),
        summary: format!("the stacks of threads hold {}", IEC.bytes(bytes)),
        fact: Fact::new("resident in stacks of threads", Amount::Bytes(bytes), "looks"),
        bytes,
        next: "fewer threads: +A, +SDio, +SDcpu, or the pools of the NIFs; smaller stacks: +sss, +sssdio, +sssdcpu",
    })
}

fn files(case: &Case<'_>) -> Option<Finding> {
    let bytes = case.owned(|owner| matches!(owner, Owner::Files(_) | Owner::Shared));
    is_much(case, bytes, FILES_SHARE.value).then(|| Finding {
        subject: "pages of files".into(),
        summary: format!(
            "{} of the RSS are pages of files or shared, which the kernel takes back or counts elsewhere too",
            IEC.bytes(bytes)
        ),
        fact: Fact::new("resident pages of files and shared memory", Amount::Bytes(bytes), "looks"),
        bytes,
        next: "use PSS or RssAnon in alarms, not RSS",
    })
}

fn is_much(case: &Case<'_>, bytes: u64, share: f64) -> bool {
    // The tables of a small node are much of it, and yet nothing that anybody looks for.
    bytes as f64 >= 2.0 * WASTE_BYTES.value && case.share_of_rss(bytes) >= share
}
