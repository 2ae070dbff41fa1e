"""What flows: record, estimate, verdict; provenance; and the store that keeps the records. Knows no torch."""

from normscope.records.answers import answer as answer, outcome_of as outcome_of, standing as standing, tried as tried
from normscope.records.cell import Cell as Cell
from normscope.records.cell_names import (
    CellClaim as CellClaim,
    claim_cell as claim_cell,
    claims as claims,
    last_cell as last_cell,
    last_step as last_step,
    require_cell_name as require_cell_name,
    take_up_cell as take_up_cell,
)
from normscope.records.estimate import Estimate as Estimate
from normscope.records.finding import Finding as Finding, Severity as Severity
from normscope.records.lease import driven as driven
from normscope.records.memory import MemoryStore as MemoryStore
from normscope.records.record import Record as Record, quick_record as quick_record, quick_records as quick_records
from normscope.records.store import Store as Store
from normscope.records.text import (
    Answer as Answer,
    Erratum as Erratum,
    Question as Question,
    Sentence as Sentence,
    Statement as Statement,
)
from normscope.records.verdict import Condition as Condition, Outcome as Outcome, Premise as Premise, Verdict as Verdict
