//! Verdicts as the judge could have made them, with all answers, and with what is hard to set: long sentences, long
//! commands, figures of each kind.

use crate::judge::{Amount, Answer, Confidence, Fact, Verdict, VerdictId};

const MIB: u64 = 1 << 20;

pub(crate) fn verdicts() -> Vec<Verdict> {
    use Amount::{Bytes, Count, Rate, Seconds, Share};
    vec![
        Verdict {
            answer: Answer::Confirmed,
            confidence: Some(Confidence::High),
            bytes: 512 * MIB,
            growth_per_second: Some(8.9e6),
            subject: Some("keep in leaky.so, called by thumbnails:scale/2".into()),
            summary: "keep in leaky.so, called by thumbnails:scale/2, leaks 8.5 MiB/s of native memory that the VM \
                      cannot see: 512.0 MiB in 131,072 blocks during this recording, none of them freed"
                .into(),
            evidence: vec![
                fact("outstanding bytes of the site grew by", Rate(8.9e6), "sites"),
                fact("outstanding at the end", Bytes(512 * MIB), "sites"),
                fact("blocks freed of those that were allocated", Count(0), "sites"),
                fact("the oldest block is still there after", Seconds(59.5), "sites"),
                fact("of the growth of native.used, this site explains", Share(0.98), "looks"),
            ],
            next: vec![
                "beamscope flamegraph node.bscope -o leak.svg  # to see all paths to it".into(),
                "beamscope record 4242 --mode exact --vm-api --walk-share 100 -d 5m -o a-longer-and-closer-look.bscope  \
                 # to see whether it goes on, and what else is asked of the VM on the way"
                    .into(),
            ],
            ..Verdict::open(VerdictId::NativeLeak)
        },
        Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::High),
            growth_per_second: Some(0.0),
            summary: "no NIF or driver holds more of the VM's blocks than at the start".into(),
            evidence: vec![
                fact("tagged blocks grew by", Rate(0.0), "tags"),
                fact("tagged blocks at the end", Bytes(300 << 10), "tags"),
            ],
            ..Verdict::open(VerdictId::NifLeak)
        },
        Verdict {
            answer: Answer::Confirmed,
            confidence: Some(Confidence::Medium),
            bytes: 96 * MIB,
            subject: Some("ets_alloc".into()),
            summary: "carriers of ets_alloc hold 96.0 MiB that no block uses, 71 % of what is resident of them".into(),
            evidence: vec![
                fact("resident and free in carriers of ets_alloc", Bytes(96 * MIB), "looks"),
                fact("of its carriers' bytes", Share(0.71), "looks"),
            ],
            next: vec![
                "start the node with `+MEas aobf`: fuller carriers first, at some processor time for each \
                        allocation; then look again with `beamscope explain 4242 --depth full`"
                    .into(),
            ],
            ..Verdict::open(VerdictId::Fragmentation)
        },
        Verdict {
            answer: Answer::Inconclusive,
            confidence: Some(Confidence::Low),
            bytes: 20 * MIB,
            subject: Some("glibc's arenas".into()),
            summary: "the C library holds 20.0 MiB of freed memory, but native code is still growing".into(),
            evidence: vec![fact("freed and still resident", Bytes(20 * MIB), "looks")],
            next: vec![
                "MALLOC_ARENA_MAX=2  # as an environment variable of the node: fewer arenas, more waiting for them"
                    .into(),
            ],
            ..Verdict::open(VerdictId::LibcRetention)
        },
        Verdict::open(VerdictId::VmGrowth),
        Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::Medium),
            summary: "little is lazily freed or kept for use again".into(),
            evidence: vec![fact("lazily freed, cached and pooled", Bytes(2 * MIB), "looks")],
            ..Verdict::open(VerdictId::Reclaimable)
        },
        Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::High),
            summary: "tables, thread stacks and files are small beside the resident memory".into(),
            ..Verdict::open(VerdictId::Limits)
        },
    ]
}

fn fact(fact: &str, amount: Amount, source: &'static str) -> Fact {
    Fact { fact: fact.to_owned(), amount, source }
}
