//! Does the VM itself use more, and what of it?
//!
//! By class: what its allocators hold in blocks, less what NIFs and drivers asked for, which is another question's.

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId, advice,
    leak::{self, Finding},
    nif_leak::{SYSTEM, is_nif_behind_malloc},
    thresholds::{QUEUED_BYTES, THINGS, VM_GROWTH_BYTES, VM_GROWTH_RATE, VM_GROWTH_SHARE},
    trend::{Course, Point, Trend},
};
use crate::{
    attribute::{Class, RankedSite},
    explain::{model::Explanation, owner::Owner},
    recording::Asked,
    wording::unit::Units,
};

const IEC: Units = Units::Iec;

/// A class of the VM's memory and how it went.
struct Growing {
    class: &'static str,
    /// Where it was seen: allocators, or a table.
    of: &'static str,
    trend: Trend,
    course: Course,
    /// Bytes per second; 0 where things were counted.
    rate: f64,
}

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::VmGrowth);
    let used = case.owned(|owner| matches!(owner, Owner::VmUsed(_) | Owner::VmCode));
    let verdict = Verdict { bytes: used, ..verdict };
    let held = Fact::new("in use by the VM: blocks in carriers, and code", Amount::Bytes(used), "looks");
    if case.looks.len() < 2 {
        return Verdict {
            summary: format!("the VM uses {}; one look does not show whether that grows", IEC.bytes(used)),
            evidence: vec![held],
            next: vec![case.record("growth", 1.0)],
            ..verdict
        };
    }
    let mut growing = classes(case);
    growing.extend(things(case));
    growing.extend(outside_of_carriers(case));
    growing.sort_by(|one, other| other.rate.total_cmp(&one.rate));
    let all: f64 = growing.iter().filter(|it| is_certain(it)).map(|it| it.rate).sum();
    let named: Vec<&Growing> = named(&growing, all);
    let Some(first) = named.first() else {
        return not_grown(case, verdict, held, &growing);
    };
    let classes: Vec<&str> = named.iter().map(|it| it.class).collect();
    let how_much: Vec<String> = named.iter().map(|it| it.how_much()).collect();
    let mut evidence: Vec<Fact> = named.iter().map(|it| fact_of(it)).collect();
    evidence.push(Fact::new("looks that show it", Amount::Count(first.trend.points as u64), "looks"));
    evidence.push(held);
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(first.trend.confidence()),
        growth_per_second: Some(named.iter().map(|it| it.rate).sum()),
        subject: Some(classes.join(", ")),
        summary: format!("the VM itself uses more and more: {}", how_much.join(", ")),
        evidence,
        next: named.iter().flat_map(|it| advice::holder(it.class)).collect(),
        ..verdict
    }
}

impl Growing {
    /// `ets +2.0 MiB/s`, `ports +120`
    fn how_much(&self) -> String {
        if self.rate > 0.0 {
            format!("{} {}", self.class, IEC.rate(self.rate))
        } else {
            format!("{} +{}", self.class, super::whole(self.trend.net))
        }
    }
}

fn is_certain(growing: &Growing) -> bool {
    growing.course == Course::Steady
}

/// The classes that grow for sure, without those that only go along with a larger one.
fn named(growing: &[Growing], all: f64) -> Vec<&Growing> {
    let mut named: Vec<&Growing> = Vec::new();
    for it in growing.iter().filter(|it| is_certain(it)) {
        let counts = it.rate == 0.0 || it.rate >= VM_GROWTH_SHARE.value * all;
        if counts && named.iter().all(|other| other.class != it.class) {
            named.push(it);
        }
    }
    named
}

fn fact_of(it: &Growing) -> Fact {
    if it.rate > 0.0 {
        Fact::new(format!("growth of {}, by {}", it.class, it.of), Amount::Rate(it.rate), "looks")
    } else {
        Fact::new(format!("new {}", it.class), Amount::Count(super::whole(it.trend.net)), "memory")
    }
}

fn not_grown(case: &Case<'_>, verdict: Verdict, held: Fact, growing: &[Growing]) -> Verdict {
    let net: f64 = growing.iter().map(|it| it.rate).sum();
    let unsure = growing.iter().find(|it| matches!(it.course, Course::AtOnce | Course::Unclear | Course::TooFew));
    if let Some(it) = unsure {
        return Verdict {
            growth_per_second: Some(it.rate),
            subject: Some(it.class.into()),
            summary: format!("the VM uses more of {}; too little was seen to tell whether it goes on", it.class),
            evidence: vec![fact_of(it), held],
            next: vec![case.record("growth", 4.0)],
            ..verdict
        };
    }
    let points = case.looks.len();
    let mut evidence = vec![held, Fact::new("looks", Amount::Count(points as u64), "looks")];
    if let Some(most) = growing.first() {
        evidence.push(fact_of(most));
    }
    Verdict {
        answer: Answer::RuledOut,
        confidence: Some(match points {
            8.. => Confidence::High,
            4.. => Confidence::Medium,
            _ => Confidence::Low,
        }),
        growth_per_second: Some(net),
        summary: format!("the VM does not use more and more; it uses {}", IEC.bytes(verdict.bytes)),
        evidence,
        ..verdict
    }
}

/// Bytes of an allocator's blocks in a look; what it has resident where the blocks were not counted.
fn used(look: &Explanation, allocator: &str) -> f64 {
    let instances = || look.instances.iter().filter(|instance| instance.allocator == allocator);
    let blocks: Option<u64> = instances()
        .map(|instance| instance.all().blocks.map(|(_, bytes)| bytes))
        .try_fold(0_u64, |sum, bytes| Some(sum.saturating_add(bytes?)));
    blocks.map_or_else(
        || {
            let owner = Owner::VmUsed(allocator.to_owned());
            look.owners.iter().filter(|owned| owned.owner == owner).map(|owned| owned.bytes as f64).sum()
        },
        |bytes| bytes as f64,
    )
}

/// Bytes that NIFs and drivers have asked for, by the allocator that their tags stand for.
fn of_nifs(look: &Explanation, allocator: &str) -> f64 {
    let in_binaries = |kind: &str| kind == "binary" || kind == "drv_binary";
    let outside = look.tags.iter().filter(|tag| tag.origin.as_deref().is_some_and(|origin| origin != SYSTEM));
    let of_allocator = outside.filter(|tag| match allocator {
        "binary_alloc" => tag.kind.as_deref().is_some_and(in_binaries),
        "driver_alloc" => !tag.kind.as_deref().is_some_and(in_binaries),
        _ => false,
    });
    of_allocator.map(|tag| tag.bytes as f64).sum()
}

/// The classes by the allocators whose blocks they are.
fn classes(case: &Case<'_>) -> Vec<Growing> {
    const CLASSES: [(&str, &str, &[&str]); 7] = [
        ("processes", "blocks of eheap_alloc", &["eheap_alloc"]),
        ("binaries", "blocks of binary_alloc", &["binary_alloc"]),
        ("ets", "blocks of ets_alloc", &["ets_alloc"]),
        ("driver", "blocks of driver_alloc", &["driver_alloc"]),
        ("code", "blocks of ll_alloc and literal_alloc", &["ll_alloc", "literal_alloc"]),
        ("fixed", "blocks of fix_alloc", &["fix_alloc"]),
        ("system", "blocks of std_alloc and sl_alloc", &["std_alloc", "sl_alloc"]),
    ];
    // Tags are known of walked blocks only, and their part must be taken away everywhere or nowhere.
    let tagged = case.looks.iter().all(|look| !look.explanation.tags.is_empty());
    let mut found = Vec::new();
    for (class, of, allocators) in CLASSES {
        let points: Vec<Point> = case
            .looks
            .iter()
            .map(|look| {
                let bytes = |allocator: &&str| {
                    let nifs = if tagged { of_nifs(&look.explanation, allocator) } else { 0.0 };
                    (used(&look.explanation, allocator) - nifs).max(0.0)
                };
                (look.at, allocators.iter().map(bytes).sum())
            })
            .collect();
        found.extend(growing(class, of, &points));
    }
    let code = case.owners(|owner| *owner == Owner::VmCode);
    found.extend(growing("code", "JIT code and literals", &code));
    rename(case, &mut found);
    found
}

fn growing(class: &'static str, of: &'static str, points: &[Point]) -> Option<Growing> {
    let trend = Trend::of(points)?;
    let course = trend.course(VM_GROWTH_BYTES.value, VM_GROWTH_RATE.value);
    Some(Growing { class, of, trend, course, rate: trend.per_second })
}

/// The allocators alone do not say what their blocks are for; what grows along with them does.
fn rename(case: &Case<'_>, found: &mut [Growing]) {
    let counted = |count: &dyn Fn(&Explanation) -> Option<u64>| Trend::of(&counts(case, count));
    let grows = |trend: Option<Trend>| trend.is_some_and(|trend| trend.course(THINGS.value, 0.0) == Course::Steady);
    let atoms = grows(counted(&|look| look.vm.atoms.map(|atoms| atoms.used)));
    let processes = grows(counted(&|look| look.vm.processes.map(|table| table.used)));
    let heaps = found.iter().any(|it| it.class == "processes" && is_certain(it));
    // The block that each message in a queue has is small, however large the message.
    let fixed =
        found.iter().any(|it| it.class == "fixed" && it.trend.course(QUEUED_BYTES.value, 0.0) == Course::Steady);
    for it in found {
        match it.class {
            // Each atom is an entry in a table of ll_alloc; each module is code as well.
            "code" if atoms && it.of.starts_with("blocks") => it.class = "atoms",
            // A message in a queue has a block of fix_alloc beside what it carries.
            "processes" if fixed && !processes => it.class = "messages",
            "fixed" if processes => it.class = "processes",
            "fixed" if heaps => it.class = "messages",
            "fixed" => it.class = "system",
            _ => {}
        }
    }
}

/// How many there were at each look that counted them all.
fn counts(case: &Case<'_>, count: &dyn Fn(&Explanation) -> Option<u64>) -> Vec<Point> {
    case.looks.iter().filter_map(|look| Some((look.at, count(&look.explanation)? as f64))).collect()
}

/// Tables of the VM that fill up: what they hold may be small, and yet they have a limit.
fn things(case: &Case<'_>) -> Vec<Growing> {
    type Count = fn(&Explanation) -> Option<u64>;
    let tables: [(&str, Count); 2] = [
        ("ports", |look| look.vm.ports.map(|table| table.used)),
        ("atoms", |look| look.vm.atoms.map(|atoms| atoms.used)),
    ];
    let found = tables.into_iter().filter_map(|(class, count)| {
        let trend = Trend::of(&counts(case, &count))?;
        let course = trend.course(THINGS.value, THINGS.value / 30.0);
        Some(Growing { class, of: "its table", trend, course, rate: 0.0 })
    });
    found.filter(is_certain).collect()
}

/// What the VM asks malloc for and is no carrier: all of it where its allocators are off.
fn outside_of_carriers(case: &Case<'_>) -> Option<Growing> {
    let is_own = |ranked: &&RankedSite<'_>| {
        ranked.attribution.class == Class::Vm
            && ranked.site.asked == Asked::System
            && !ranked.has_carriers()
            && !is_nif_behind_malloc(ranked)
    };
    let disabled = case.last_look().is_some_and(|look| !look.disabled.is_empty());
    let leaks =
        leak::groups(case, case.sites.iter().filter(is_own)).into_iter().filter_map(|group| match group.finding() {
            Finding::Leak(trend) if disabled || trend.net >= VM_GROWTH_BYTES.value => Some(trend),
            _ => None,
        });
    let leaks: Vec<Trend> = leaks.collect();
    let rate = leaks.iter().map(|trend| trend.per_second).sum();
    let trend = *leaks.first()?;
    Some(Growing { class: "system", of: "what it asked malloc for", trend, course: Course::Steady, rate })
}
