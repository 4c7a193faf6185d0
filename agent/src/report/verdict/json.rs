//! What do verdicts look like to a program?

use serde_json::{Value, json};

use crate::judge::{self, Amount, Fact, Threshold, Verdict};

/// The verdicts, in the order of the questions.
pub(in crate::report) fn verdicts(verdicts: &[Verdict]) -> Vec<Value> {
    verdicts.iter().map(verdict).collect()
}

/// The numbers that the verdicts compare figures with.
pub(in crate::report) fn thresholds() -> Vec<Value> {
    let threshold = |Threshold { name, value, unit, reason }: &Threshold| json!({ "name": name, "value": value, "unit": unit, "reason": reason });
    judge::thresholds().iter().map(threshold).collect()
}

fn verdict(verdict: &Verdict) -> Value {
    let Verdict { id, answer, confidence, bytes, growth_per_second, subject, summary, evidence, next } = verdict;
    json!({
        "id": id,
        "answer": answer,
        "confidence": confidence,
        "bytes": bytes,
        "growth_per_s": growth_per_second,
        "subject": subject,
        "summary": summary,
        "evidence": evidence.iter().map(fact).collect::<Vec<_>>(),
        "next": next,
    })
}

fn fact(fact: &Fact) -> Value {
    let Fact { fact, amount, source } = fact;
    let (value, unit) = match amount {
        Amount::Bytes(bytes) => (json!(bytes), "bytes"),
        Amount::Rate(rate) => (json!(rate), "bytes/s"),
        Amount::Count(count) => (json!(count), "count"),
        Amount::Seconds(seconds) => (json!(seconds), "seconds"),
        Amount::Share(share) => (json!(share), "share"),
    };
    json!({ "fact": fact, "value": value, "unit": unit, "source": source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::report::verdict::sample;

    #[test]
    fn bytes_are_integers_and_nothing_is_left_out() {
        let all = verdicts(&sample::verdicts());
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
        for verdict in &all {
            let expected = "id answer confidence bytes growth_per_s subject summary evidence next";
            assert_eq!(keys(verdict), expected.split(' ').map(str::to_owned).collect());
            assert!(verdict["bytes"].is_u64(), "{verdict}");
            for fact in verdict["evidence"].as_array().expect("a list") {
                assert_eq!(keys(fact), ["fact", "value", "unit", "source"].map(str::to_owned).into());
                let is_whole = matches!(fact["unit"].as_str(), Some("bytes" | "count"));
                assert!(if is_whole { fact["value"].is_u64() } else { fact["value"].is_f64() }, "{fact}");
            }
        }
        let answers: BTreeSet<_> = all.iter().map(|verdict| verdict["answer"].as_str().expect("a word")).collect();
        assert_eq!(answers, ["confirmed", "inconclusive", "ruled_out"].into());
    }
}
