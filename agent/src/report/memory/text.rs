//! Where does each resident byte belong? For a person.

use std::fmt::{self, Write as _};

use crate::{
    erts::alloc::Depth,
    explain::{
        by_allocator,
        model::{Explanation, InstanceFacts, Place, Walked},
    },
    judge::Verdict,
    report::{
        Options, label,
        memory::{Memory, held},
        page::{HEADING, Page, of, table},
        unit::{self, Units},
        verdict,
    },
};

/// Owners that have less than this share of the RSS are one row together.
const SMALL_SHARE: f64 = 0.001;
/// Letters of the longest bar.
const BAR: f64 = 24.0;
/// Widths of columns with names.
const OWNER: usize = 26;
const ORIGIN: usize = 32;

/// Rows of a table at most, where nothing else is said: the owners of a node are about as many.
pub const ROWS: usize = 20;

/// Renders one look, and what it answers, as a report of its own.
pub fn render(explanation: &Explanation, verdicts: &[Verdict], options: Options) -> String {
    let mut text = String::new();
    let mut page = Page::new(&mut text);
    let memory = Memory::once(explanation);
    let mut whole = || -> fmt::Result {
        header(&mut page, explanation, options.units)?;
        verdict::text::sections(&mut page, verdicts, options.units)?;
        sections(&mut page, &memory, options)?;
        remarks(&mut page, "Notes", &explanation.notes)?;
        remarks(&mut page, "Defects", &explanation.defects)?;
        verdict::text::thresholds(&mut page, options.units)
    };
    #[expect(clippy::expect_used, reason = "writing to a String fails only where a Display of ours does")]
    whole().expect("a String takes everything");
    text
}

/// The tables of a look: owners, allocators, tags, libc, and places without an owner.
pub(in crate::report) fn sections(page: &mut Page<'_>, memory: &Memory<'_>, options: Options) -> fmt::Result {
    let mut text = Text { memory, explanation: memory.explanation, options, page };
    text.owners()?;
    text.allocators()?;
    held::pinned(text.page, memory.explanation, options)?;
    text.tags()?;
    text.libc()?;
    held::limits(text.page, memory.explanation, options.units)?;
    text.places("Unattributed", &memory.explanation.unowned)?;
    text.places("Mapped by native code", &memory.explanation.mapped)
}

/// Sentences under a heading.
pub(in crate::report) fn remarks(page: &mut Page<'_>, heading: &str, sentences: &[String]) -> fmt::Result {
    if !sentences.is_empty() {
        page.heading(heading)?;
    }
    for sentence in sentences {
        page.wrapped("  ", "- ", &label::clean(sentence))?;
    }
    Ok(())
}

struct Text<'a, 'page> {
    memory: &'a Memory<'a>,
    explanation: &'a Explanation,
    options: Options,
    page: &'a mut Page<'page>,
}

impl Text<'_, '_> {
    fn owners(&mut self) -> fmt::Result {
        let Explanation { owners, unattributed, resident, .. } = self.explanation;
        self.page.heading("Owners of the resident memory")?;
        let memory = self.memory;
        let fourth = if memory.grows() { "growth/s" } else { "" };
        let mut table =
            table(&["owner", "bytes", "share", fourth, "what it is"], if memory.grows() { 1..4 } else { 1..3 });
        let share = |bytes: u64| if *resident == 0 { 0.0 } else { bytes as f64 / *resident as f64 };
        let largest = owners.first().map_or(0.0, |first| share(first.bytes)).max(f64::MIN_POSITIVE);
        let units = self.options.units;
        let mut row = |name: &str, bytes: u64, growth: Option<f64>, meaning: &str| {
            table.add_row([
                label::shorten(&label::clean(name), OWNER),
                units.bytes(bytes),
                format!("{:.1} %", 100.0 * share(bytes)),
                growth.map_or_else(|| bar(share(bytes) / largest), |rate| units.rate(rate)),
                meaning.to_owned(),
            ]);
        };
        let (shown, small): (Vec<_>, Vec<_>) = owners.iter().partition(|owned| share(owned.bytes) >= SMALL_SHARE);
        for owned in shown {
            let name = owned.owner.to_string();
            row(&name, owned.bytes, memory.growth(&name), owned.owner.meaning());
        }
        if !small.is_empty() {
            let bytes = small.iter().fold(0_u64, |sum, owned| sum.saturating_add(owned.bytes));
            let growth =
                small.iter().filter_map(|owned| memory.growth(&owned.owner.to_string())).reduce(|one, two| one + two);
            row(&format!("{} smaller ones", small.len()), bytes, growth, "each below 0.1 %");
        }
        let none = memory.grows().then_some(0.0).filter(|_| *unattributed == 0);
        row("unattributed", *unattributed, none, "nobody's, as far as is known");
        self.page.table(&table)
    }

    fn allocators(&mut self) -> fmt::Result {
        let instances = &self.explanation.instances;
        if instances.is_empty() {
            return Ok(());
        }
        let mut rows = by_allocator(instances, Sums::add);
        rows.sort_by(|(_, one), (_, other)| {
            other.resident_free.cmp(&one.resident_free).then_with(|| other.carrier_bytes().cmp(&one.carrier_bytes()))
        });
        self.page.heading("Allocators, by bytes that are resident and free")?;
        let header =
            ["allocator", "resident free", "carriers", "in pool", "carrier bytes", "used", "blocks", "largest free"];
        let mut table = table(&header, 1..8);
        let units = self.options.units;
        for (name, sums) in &rows {
            let blocks = sums.all.blocks;
            let used = blocks.filter(|_| sums.all.carrier_bytes > 0);
            table.add_row([
                label::clean(name),
                units.bytes(sums.resident_free),
                unit::count(sums.all.carriers),
                unit::count(sums.pooled),
                units.bytes(sums.carrier_bytes()),
                used.map_or_else(dash, |(_, bytes)| percent(bytes, sums.all.carrier_bytes)),
                blocks.map_or_else(dash, |(blocks, _)| unit::count(blocks)),
                sums.largest.map_or_else(dash, |bytes| if bytes == 0 { dash() } else { units.bytes(bytes) }),
            ]);
        }
        self.page.table(&table)
    }

    fn tags(&mut self) -> fmt::Result {
        let Explanation { tags, untagged, depth, .. } = self.explanation;
        if depth.reached != Depth::Full {
            return Ok(());
        }
        let shown = tags.len().min(self.options.top);
        self.page.heading(&format!("Who asked the VM for tagged blocks{}", of(shown, tags.len())))?;
        if tags.is_empty() && untagged.is_empty() {
            return self.page.wrapped("", "", "Not known: the tables of their names were not found.");
        }
        if tags.is_empty() {
            return self.page.wrapped(
                "",
                "",
                "No block carries a tag: start the node with +MRatags true +MBatags true to see which NIF or driver asked \
                 for what.",
            );
        }
        let mut table = table(&["origin", "type", "bytes", "blocks", "mean"], 2..5);
        let units = self.options.units;
        for tag in tags.iter().take(shown) {
            let name = |name: &Option<String>| label::shorten(&label::clean(name.as_deref().unwrap_or("?")), ORIGIN);
            let mean = tag.bytes.checked_div(tag.blocks).unwrap_or(0);
            table.add_row([
                name(&tag.origin),
                name(&tag.kind),
                units.bytes(tag.bytes),
                unit::count(tag.blocks),
                units.bytes(mean),
            ]);
        }
        self.page.table(&table)?;
        let without = untagged.join(", ");
        let hint = format!("Without tags: {without}. The flag +M<S>atags true adds them to one allocator.");
        if untagged.is_empty() { Ok(()) } else { self.page.wrapped("", "", &label::clean(&hint)) }
    }

    fn libc(&mut self) -> fmt::Result {
        let Some(libc) = &self.explanation.libc else { return Ok(()) };
        let heap = &libc.heap;
        let units = self.options.units;
        self.page.heading("The C library's heap")?;
        let arenas = heap.arenas.len();
        let free = heap.free_bytes.saturating_add(heap.fastbin_bytes).saturating_add(heap.top_bytes);
        let in_use = units.bytes(heap.in_use_bytes);
        self.page.field("in arenas", &format!("{in_use} in use, {} free, in {arenas} arenas", units.bytes(free)))?;
        let mapped = units.bytes(heap.mapped_bytes);
        self.page.field("mapped", &format!("{mapped} in {} chunks of their own", unit::count(heap.mapped_chunks)))?;
        let vm = units.bytes(libc.vm_bytes);
        self.page.field("of these", &format!("{vm} are carriers of the VM"))?;
        let (used, free) = (units.bytes(libc.resident_used), units.bytes(libc.resident_free));
        self.page.field("resident", &format!("{used} in use by others, {free} free"))
    }

    fn places(&mut self, heading: &str, places: &[Place]) -> fmt::Result {
        if places.is_empty() {
            return Ok(());
        }
        let shown = places.len().min(self.options.top);
        self.page.heading(&format!("{heading}{}", of(shown, places.len())))?;
        let mut table = table(&["bytes", "from", "to", "what"], 0..1);
        for place in places.iter().take(shown) {
            let units = self.options.units;
            let address = |address: u64| format!("{address:#x}");
            table.add_row([
                units.bytes(place.bytes),
                address(place.start),
                address(place.end),
                label::clean(&place.what),
            ]);
        }
        self.page.table(&table)
    }
}

fn header(page: &mut Page<'_>, explanation: &Explanation, units: Units) -> fmt::Result {
    let Explanation { node, taken_unix, resident, figures, huge, depth, .. } = explanation;
    writeln!(page, "{HEADING}Memory of {}{HEADING:#}", crate::report::header::node_name(node))?;
    page.field("node", &crate::report::header::node_facts(node))?;
    page.field("taken", &unit::moment(*taken_unix))?;
    let parts = [
        ("PSS", figures.pss),
        ("anonymous", figures.anon),
        ("files", figures.file),
        ("shared", figures.shmem),
        ("in huge pages", *huge),
        ("lazily freed", figures.lazy_free),
        ("swapped", figures.swap),
    ];
    let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<_> = parts.map(|(name, bytes)| format!("{name} {}", units.bytes(*bytes))).collect();
    page.field("RSS", &format!("{}  ({})", units.bytes(*resident), parts.join(", ")))?;
    let (walked, carriers) = (unit::count(depth.walked), unit::count(depth.carriers));
    let looked = match depth.reached {
        Depth::Counters => "at the VM's own counters only; no owner of its carriers is told".to_owned(),
        Depth::Headers => format!("at the headers of {carriers} carriers; blocks by the counters in them"),
        Depth::Full if depth.walked == depth.carriers => format!("at every block of {carriers} carriers"),
        Depth::Full => format!(
            "at every block of {walked} of {carriers} carriers; blocks of the rest by the counters in their headers"
        ),
    };
    page.field("looked", &looked)
}

/// Sums over the instances of an allocator.
struct Sums {
    all: Walked,
    pooled: u64,
    resident_free: u64,
    largest: Option<u64>,
    /// Carriers by the VM's counters, where none was walked.
    counted: u64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { all: Walked::none(), pooled: 0, resident_free: 0, largest: Some(0), counted: 0 }
    }
}

impl Sums {
    fn add(&mut self, facts: &InstanceFacts) {
        self.all = self.all.plus(facts.all());
        self.pooled = self.pooled.saturating_add(facts.pool.carriers);
        self.resident_free = self.resident_free.saturating_add(facts.resident_free);
        self.largest = self.largest.zip(facts.largest_free_block).map(|(one, two)| one.max(two));
        if let Some(counters) = &facts.counters {
            let bytes = [Some(&counters.mbcs), Some(&counters.sbcs), counters.pool.as_ref()];
            let bytes = bytes.into_iter().flatten().map(|kind| kind.carrier_bytes.now);
            self.counted = bytes.fold(self.counted, u64::saturating_add);
        }
    }

    fn carrier_bytes(&self) -> u64 {
        if self.all.carriers == 0 { self.counted } else { self.all.carrier_bytes }
    }
}

fn bar(share: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the longest bar")]
    let eighths = (share.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"].get(eighths % 8).copied().unwrap_or_default();
    format!("{}{rest}", "█".repeat(eighths / 8))
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / (whole.max(1)) as f64)
}

fn dash() -> String {
    "-".to_owned()
}
