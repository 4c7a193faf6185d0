//! Ends a recording: takes what stands in the tables, and puts everything into one value.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Context as _;
use beamscope_probe::{Block, Counter, Function, SiteKey};

use super::Recorder;
use crate::{
    erts::carrier,
    kernel::{
        faults::PERIOD,
        plan::{MappingCalls, is_mapping_call},
    },
    ledger::{Ledger, SiteTotals},
    mapping::Address,
    recording::{Asked, BlindSpan, CarrierSeen, Ended, Interval, Mode, Probe, Recording, Site},
    stack::{Frame, FrameKind, KERNEL_MODULE, Stack, raw::RawStack},
    target::allocator::Allocator,
};

/// Smallest block in which a carrier is looked for. The smallest that the VM makes are its main carriers
/// (`+M<S>mmbcs`, from 32 KiB up; `erl_alloc.c`, OTP-25.2.3).
const SMALLEST_CARRIER: u64 = 32 << 10;

impl Recorder {
    /// Stops the probe, takes everything in, and returns what was recorded. The probes are gone from the node when the
    /// recorder is dropped, which takes longer and is better done when the recording is safe.
    pub fn finish(&mut self, ended: Ended) -> anyhow::Result<Recording> {
        self.session.stop()?;
        let seconds = self.elapsed();
        self.close_windows(seconds)?;
        self.drain()?;
        match self.refresh() {
            Ok(()) => self.ledger.prove(&self.code.mappings),
            Err(_) if ended == Ended::NodeExited => {}
            Err(error) => {
                self.defects.push(format!("the mappings at the end could not be read, those before serve: {error:#}"));
            }
        }
        self.observe()?;
        if ended != Ended::NodeExited {
            self.looks.take(&self.target, seconds, self.faults.pages(), &mut self.defects);
        }
        let touched = self.faults.touched(&self.looks.owners, |stack| self.ledger.threads_of(stack));
        let live = self.session.live_blocks().collect::<Result<Vec<(u64, Block)>, _>>()?;
        let counters = Counter::ALL
            .iter()
            .map(|counter| Ok((*counter, self.session.counter(*counter)?)))
            .collect::<anyhow::Result<Vec<(Counter, u64)>>>()?;
        let reserved = self.ledger.reserved_bytes();
        let (dropped_samples, dropped_events) = (self.ledger.dropped_samples, self.ledger.dropped_events);

        let Self { ledger, stacks, .. } = self;
        let ledger = std::mem::replace(ledger, Ledger::new(0, 1, 0));
        let totals = ledger.close(seconds, live.into_iter(), |key| {
            let known = if key.is_stack == 0 { None } else { stacks.known(key.caller) };
            known.unwrap_or_else(|| stacks.intern(caller_only(key)))
        });
        self.learn();

        let mut carriers = Vec::new();
        let mut sites = Vec::with_capacity(totals.len());
        for totals in totals {
            carriers.extend(self.carriers(&totals, sites.len()));
            sites.push(self.site(totals)?);
        }
        let ends = self.stacks.ends(&self.session)?;
        let of_system = || sites.iter().filter(|site: &&Site| site.asked == Asked::System);
        let freed: u64 = of_system().map(|site| site.freed_blocks).sum();
        let allocated: u64 = of_system().map(|site| site.allocated_blocks).sum();
        let mut losses = BTreeMap::new();
        let mut counts = BTreeMap::from([
            ("allocated_blocks".to_owned(), allocated),
            ("freed_blocks".to_owned(), freed),
            ("walked_stacks".to_owned(), ends.all()),
            ("complete_stacks".to_owned(), ends.complete()),
            ("unwind_row_bytes".to_owned(), self.code.row_bytes()),
            ("reserved_bytes".to_owned(), reserved),
            ("thread_stack_bytes".to_owned(), self.ledger.thread_stack_bytes()),
        ]);
        for (counter, value) in counters {
            let into = if counter.is_loss() { &mut losses } else { &mut counts };
            let value = value.saturating_sub(self.windows.forgiven(counter));
            // The kernel tells of some that stand for the others.
            let value = if counter == Counter::PageFaults { value.saturating_mul(PERIOD) } else { value };
            into.insert(counter.name().to_owned(), value);
        }
        for (name, value) in [
            ("malformed_records", self.malformed),
            ("dropped_samples", dropped_samples),
            ("dropped_mapping_events", dropped_events),
            ("stacks_without_room", self.stacks.refused()),
            ("faults_without_room", self.faults.without_room),
            ("addresses_without_readable_symbols", self.code.unreadable_symbols()),
            ("reused_code_addresses", self.code.erlang.reused_addresses()),
            ("nameless_code_addresses", self.code.erlang.nameless_addresses()),
        ] {
            losses.insert(name.to_owned(), value);
        }
        for (reason, stacks) in ends.losses() {
            *losses.entry(reason.to_owned()).or_default() += stacks;
        }
        let probes =
            self.plan.points.iter().map(|point| Probe { place: point.place.clone(), emulated: point.emulated });
        let probes = probes.collect::<BTreeSet<Probe>>().into_iter().collect();
        losses.retain(|_, value| *value != 0);
        counts.retain(|_, value| *value != 0);
        self.defects.append(&mut self.code.defects);
        let (cost, mut blind) = self.cost()?;
        blind.extend(blind_by_mode(self.options.mode, seconds));
        Ok(Recording {
            beamscope: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.target.node().clone(),
            interval: Interval {
                start_unix: self.start_unix,
                seconds,
                mode: self.options.mode,
                sample_interval_bytes: self.options.sample_interval,
                ended,
            },
            snapshots: std::mem::take(&mut self.snapshots),
            looks: std::mem::take(&mut self.looks).into_list(),
            mappings: self.code.mappings.clone(),
            sites,
            carriers,
            faults: self.fault_sites(touched),
            blind,
            cost,
            losses,
            counts,
            notes: self.plan.notes.iter().cloned().chain(self.session.cost_notes()).collect(),
            probes,
            defects: std::mem::take(&mut self.defects),
        })
    }

    /// Takes in what is left in the ring buffers: nothing more comes in.
    fn drain(&mut self) -> anyhow::Result<()> {
        while self.poll()? {}
        Ok(())
    }

    fn site(&self, totals: SiteTotals) -> anyhow::Result<Site> {
        let raw = self.stacks.get(totals.stack).context("a site has no stack")?;
        let thread = self.stacks.first_thread(totals.stack);
        let name = totals.threads.first();
        Ok(Site {
            stack: self.code.name(raw, Some(self.leaf(totals.function))),
            creator: self.creator(thread),
            asked: self.asked(&totals),
            thread: name.map(|name| self.code.erlang.thread_kind(thread, name, self.target.pid())),
            driver: self.code.erlang.driver(raw, &self.code.mappings),
            threads: totals.threads,
            allocated_bytes: totals.totals.allocated_bytes,
            allocated_blocks: totals.totals.allocated_blocks,
            freed_bytes: totals.totals.freed_bytes,
            freed_blocks: totals.totals.freed_blocks,
            outstanding: totals.outstanding,
            survivors: totals.survivors,
            exact: totals.exact,
        })
    }

    fn asked(&self, totals: &SiteTotals) -> Asked {
        match totals.function {
            Function::MsegAlloc => Asked::Carriers { allocator: self.code.erlang.allocator(totals.allocator) },
            function if function.is_vm_api() => Asked::Vm,
            _ => Asked::System,
        }
    }

    /// The stack that made `thread`, where it was made during the recording.
    fn creator(&self, thread: Option<u32>) -> Option<Stack> {
        Some(self.code.name(self.stacks.creator(thread?)?, None))
    }

    /// The frame of the allocation function itself. The walk begins at its caller, so only its name is known.
    fn leaf(&self, function: Function) -> Frame {
        let module = if function.is_vm_api() || function == Function::MsegAlloc {
            Some(self.target.beam().name().to_owned())
        } else if is_mapping_call(function) && self.plan.mapping_calls != MappingCalls::Functions {
            Some(KERNEL_MODULE.to_owned())
        } else {
            let serves =
                |allocator: &&Allocator| allocator.functions.iter().any(|located| located.function == function);
            self.allocators.iter().find(serves).map(|allocator| allocator.name.clone())
        };
        Frame {
            address: Address(0),
            kind: FrameKind::Native,
            module,
            function: Some(function.name().to_owned()),
            offset: None,
            file: None,
            line: None,
            inlined: false,
        }
    }

    /// The VM's carriers that lie in the largest blocks of a site.
    fn carriers(&self, totals: &SiteTotals, site: usize) -> Vec<CarrierSeen> {
        let mut seen = HashSet::new();
        let largest: &[(u64, u64)] = if self.asked(totals) == Asked::System { &totals.largest } else { &[] };
        largest
            .iter()
            .filter(|(address, size)| *size >= SMALLEST_CARRIER && seen.insert(*address))
            .filter_map(|(address, size)| carrier::find(Address(*address), *size, self.target.memory()))
            .map(|found| CarrierSeen { site, allocator: found.allocator, bytes: found.bytes })
            .collect()
    }
}

/// The span in which the mode follows no allocations.
fn blind_by_mode(mode: Mode, seconds: f64) -> Option<BlindSpan> {
    let reason = "growth mode follows no allocations".to_owned();
    (mode == Mode::Growth).then_some(BlindSpan { from: 0.0, until: seconds, reason })
}

/// What is known of the stack of a site that no sample has shown: who called.
fn caller_only(key: &SiteKey) -> RawStack {
    let caller = (key.caller != 0 && key.is_stack == 0).then_some(Address(key.caller));
    RawStack { addresses: caller.into_iter().collect(), ..RawStack::default() }
}
