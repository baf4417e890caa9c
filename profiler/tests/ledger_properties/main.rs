//! What must hold for any facts in any order: the ledger adds up to the microjoule, equals get
//! equal parts, who does nothing beside others gets nothing, and time may be cut anywhere.

mod accounts;
mod conservation;
mod instances;
mod shares;
mod world;
