//! The report of a fleet, from recorded series: Prometheus', or those of whatever speaks its API.
//!
//! In: an address, a period and matchers. Out: the [`Report`] that a recording has too, with what series of
//! nodes can tell. One question for each part of the period; each adds up what
//! `dashboards/rules.yaml` recorded every five minutes.

mod client;
mod gathered;
pub(super) mod model;
mod period;
mod question;
mod source;
mod sums;
#[cfg(test)]
mod tests;
mod versions;

use thiserror::Error;

use client::{Client, ClientError};
use gathered::Gathered;
use period::PeriodError;
pub use source::FleetSource;

use super::{FullEnergy, Inputs, Report};

/// Why there is no report of a fleet.
#[derive(Debug, Error)]
pub enum FleetError {
    /// The period makes no sense.
    #[error(transparent)]
    Period(#[from] PeriodError),
    /// The server gives no answer that can be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is nothing in the period.
    #[error(
        "nothing is recorded under {series} from {from} to {to}{matched}; load dashboards/rules.yaml into the server that \
         evaluates rules (Prometheus: rule_files), and ask for a time after that{hint}"
    )]
    Empty {
        /// What must be there.
        series: &'static str,
        /// The period.
        from: String,
        /// Its end.
        to: String,
        /// The matchers, in words.
        matched: String,
        /// What to look at if there are matchers.
        hint: &'static str,
    },
    /// More samples than a rule of every five minutes can have.
    #[error(
        "{node} has {samples} samples of {series} where one every five minutes makes {expected}: the group perjoule-report of \
         rules.yaml must keep its `interval: 5m`"
    )]
    TooOften {
        /// Whose.
        node: String,
        /// What was counted.
        series: &'static str,
        /// How many there are.
        samples: u64,
        /// How many there may be.
        expected: u64,
    },
    /// A series that rules.yaml does not make.
    #[error(
        "{series} has {what}, which rules.yaml does not record; is it recorded by other rules too?"
    )]
    Foreign {
        /// Its name.
        series: String,
        /// What is wrong with it.
        what: String,
    },
    /// No thread for it.
    #[error("cannot begin: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Asks for the period's parts, one after the other, and adds them up.
///
/// # Errors
/// Cause and next step.
pub fn read_fleet(
    source: &FleetSource,
    full: FullEnergy,
    inputs: &Inputs,
) -> Result<Report, FleetError> {
    let now = jiff::Timestamp::now();
    let period = source.period(now.as_second())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut gathered = Gathered::new(period);
    let asked = runtime.block_on(async {
        let mut client = Client::new(source)?;
        for (place, part) in period.parts().enumerate() {
            let asked = question::of(part.seconds(), source.matchers());
            let answer = client.instant(&asked, part.to).await?;
            gathered.take((place, part), answer)?;
        }
        Ok::<(), FleetError>(())
    });
    // A name that is still being looked up holds nobody up.
    runtime.shutdown_background();
    asked?;
    if gathered.is_empty() {
        return Err(FleetError::Empty {
            series: question::ENERGY,
            from: period::shown(period.from),
            to: period::shown(period.to),
            matched: source.matched(),
            hint: if source.matchers().is_empty() {
                ""
            } else {
                ". A matcher must name a label that all recorded series have, as cluster is, or one that your storage adds"
            },
        });
    }
    gathered.check()?;
    let today = now.strftime("%Y-%m-%d").to_string();
    Ok(gathered.report(source, full, inputs, &today))
}
