/* Written by `python -m tests.model --write-tables` from app/protocol/kinds.py, app/protocol/values.py and
 * participants/holdfast/fence/; a test compares it with them. Change it there, never here. */

#define NONE 0

#define Kind_TCC 1
#define Kind_COMPENSABLE 2
#define Kind_CHECK 3
#define Kind_PIVOT 4
#define Kind_RETRYABLE 5

#define Decision_UNDECIDED 1
#define Decision_CONFIRM 2
#define Decision_CANCEL 3

#define BranchPhase_PENDING 1
#define BranchPhase_TRYING 2
#define BranchPhase_HELD 3
#define BranchPhase_REFUSED 4
#define BranchPhase_CONFIRMING 5
#define BranchPhase_CONFIRMED 6
#define BranchPhase_CANCELLING 7
#define BranchPhase_CANCELLED 8

#define Operation_TRY 1
#define Operation_CONFIRM 2
#define Operation_CANCEL 3
#define Operation_ACTION 4
#define Operation_COMPENSATION 5

#define Answer_SUCCEEDED 1
#define Answer_REFUSED 2
#define Answer_UNANSWERED 3

#define State_NOTHING 1
#define State_HELD 2
#define State_CONFIRMED 3
#define State_CANCELLED 4
#define State_EXPIRED 5

#define Event_TRY 1
#define Event_CONFIRM 2
#define Event_CANCEL 3
#define Event_ACTION 4
#define Event_COMPENSATION 5
#define Event_TOLD_CONFIRM 6
#define Event_TOLD_CANCEL 7
#define Event_ABANDONED 8

#define READY(kind) ( \
  (kind) == Kind_TCC -> BranchPhase_HELD : ( \
  (kind) == Kind_COMPENSABLE -> BranchPhase_HELD : ( \
  (kind) == Kind_CHECK -> BranchPhase_HELD : ( \
  (kind) == Kind_PIVOT -> BranchPhase_HELD : ( \
  (kind) == Kind_RETRYABLE -> BranchPhase_PENDING : ( \
  NONE))))))

#define FOLLOWS(kind, decision, phase) ( \
  (kind) == Kind_TCC && (decision) == Decision_CONFIRM && (phase) == BranchPhase_HELD -> BranchPhase_CONFIRMING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_REFUSED -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_HELD -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_COMPENSABLE && (decision) == Decision_CONFIRM && (phase) == BranchPhase_HELD -> BranchPhase_CONFIRMED : ( \
  (kind) == Kind_COMPENSABLE && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (decision) == Decision_CANCEL && (phase) == BranchPhase_REFUSED -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_COMPENSABLE && (decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_COMPENSABLE && (decision) == Decision_CANCEL && (phase) == BranchPhase_HELD -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_CHECK && (decision) == Decision_CONFIRM && (phase) == BranchPhase_HELD -> BranchPhase_CONFIRMED : ( \
  (kind) == Kind_CHECK && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_CHECK && (decision) == Decision_CANCEL && (phase) == BranchPhase_REFUSED -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_CHECK && (decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_CHECK && (decision) == Decision_CANCEL && (phase) == BranchPhase_HELD -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_PIVOT && (decision) == Decision_CONFIRM && (phase) == BranchPhase_HELD -> BranchPhase_CONFIRMED : ( \
  (kind) == Kind_PIVOT && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_PIVOT && (decision) == Decision_CANCEL && (phase) == BranchPhase_REFUSED -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_RETRYABLE && (decision) == Decision_CONFIRM && (phase) == BranchPhase_PENDING -> BranchPhase_CONFIRMING : ( \
  (kind) == Kind_RETRYABLE && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  NONE)))))))))))))))))))))

#define ASKS(kind, phase) ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_PENDING -> Operation_TRY : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_TRYING -> Operation_TRY : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_CONFIRMING -> Operation_CONFIRM : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_CANCELLING -> Operation_CANCEL : ( \
  (kind) == Kind_COMPENSABLE && (phase) == BranchPhase_PENDING -> Operation_ACTION : ( \
  (kind) == Kind_COMPENSABLE && (phase) == BranchPhase_TRYING -> Operation_ACTION : ( \
  (kind) == Kind_COMPENSABLE && (phase) == BranchPhase_CANCELLING -> Operation_COMPENSATION : ( \
  (kind) == Kind_CHECK && (phase) == BranchPhase_PENDING -> Operation_ACTION : ( \
  (kind) == Kind_CHECK && (phase) == BranchPhase_TRYING -> Operation_ACTION : ( \
  (kind) == Kind_PIVOT && (phase) == BranchPhase_PENDING -> Operation_ACTION : ( \
  (kind) == Kind_PIVOT && (phase) == BranchPhase_TRYING -> Operation_ACTION : ( \
  (kind) == Kind_PIVOT && (phase) == BranchPhase_CANCELLING -> Operation_CANCEL : ( \
  (kind) == Kind_RETRYABLE && (phase) == BranchPhase_CONFIRMING -> Operation_ACTION : ( \
  NONE))))))))))))))

#define ANSWERED(phase, answer) ( \
  (phase) == BranchPhase_TRYING && (answer) == Answer_SUCCEEDED -> BranchPhase_HELD : ( \
  (phase) == BranchPhase_TRYING && (answer) == Answer_REFUSED -> BranchPhase_REFUSED : ( \
  (phase) == BranchPhase_TRYING && (answer) == Answer_UNANSWERED -> BranchPhase_TRYING : ( \
  (phase) == BranchPhase_CONFIRMING && (answer) == Answer_SUCCEEDED -> BranchPhase_CONFIRMED : ( \
  (phase) == BranchPhase_CONFIRMING && (answer) == Answer_REFUSED -> BranchPhase_CONFIRMING : ( \
  (phase) == BranchPhase_CONFIRMING && (answer) == Answer_UNANSWERED -> BranchPhase_CONFIRMING : ( \
  (phase) == BranchPhase_CANCELLING && (answer) == Answer_SUCCEEDED -> BranchPhase_CANCELLED : ( \
  (phase) == BranchPhase_CANCELLING && (answer) == Answer_REFUSED -> BranchPhase_CANCELLING : ( \
  (phase) == BranchPhase_CANCELLING && (answer) == Answer_UNANSWERED -> BranchPhase_CANCELLING : ( \
  NONE))))))))))

#define IS_FINAL(phase) ( \
  (phase) == BranchPhase_CONFIRMED -> 1 : ( \
  (phase) == BranchPhase_CANCELLED -> 1 : ( \
  0)))

#define FENCE_ASKS(kind, state) ( \
  (kind) == Kind_TCC && (state) == State_HELD -> 1 : ( \
  0))

#define FENCE_THEN(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CONFIRM -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TOLD_CONFIRM -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TOLD_CANCEL -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_ABANDONED -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TRY -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CONFIRM -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TRY -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CANCEL -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TOLD_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TOLD_CANCEL -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_ABANDONED -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TRY -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CONFIRM -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TOLD_CONFIRM -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_ABANDONED -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TRY -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CONFIRM -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CANCEL -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TOLD_CONFIRM -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TOLD_CANCEL -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> State_HELD : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_ACTION -> State_HELD : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_CHECK && (state) == State_NOTHING && (event) == Event_ACTION -> State_NOTHING : ( \
  (kind) == Kind_CHECK && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> State_CONFIRMED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CONFIRMED && (event) == Event_ACTION -> State_CONFIRMED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  NONE))))))))))))))))))))))))))))))))))))))))))

#define FENCE_RUNS(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> 1 << Operation_TRY : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> 1 << Operation_CONFIRM : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CANCEL -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_ABANDONED -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> 1 << Operation_ACTION : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> 1 << Operation_COMPENSATION : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> 1 << Operation_ACTION : ( \
  0)))))))))

#define FENCE_ANSWER(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CANCEL -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_REFUSED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_CHECK && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_CHECK && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CONFIRMED && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_REFUSED : ( \
  NONE)))))))))))))))))))))))))))

#define FENCE_THEN_REACQUIRING(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CONFIRM -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TOLD_CONFIRM -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TOLD_CANCEL -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_ABANDONED -> State_NOTHING : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TRY -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CONFIRM -> State_HELD : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TRY -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CANCEL -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TOLD_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TOLD_CANCEL -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_ABANDONED -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TRY -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CONFIRM -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TOLD_CONFIRM -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_ABANDONED -> State_CANCELLED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TRY -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CANCEL -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TOLD_CONFIRM -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TOLD_CANCEL -> State_EXPIRED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> State_HELD : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_ACTION -> State_HELD : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_COMPENSATION -> State_CANCELLED : ( \
  (kind) == Kind_CHECK && (state) == State_NOTHING && (event) == Event_ACTION -> State_NOTHING : ( \
  (kind) == Kind_CHECK && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> State_CONFIRMED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CONFIRMED && (event) == Event_ACTION -> State_CONFIRMED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> State_CANCELLED : ( \
  NONE))))))))))))))))))))))))))))))))))))))))))

#define FENCE_RUNS_REACQUIRING(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> 1 << Operation_TRY : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> 1 << Operation_CONFIRM : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TOLD_CANCEL -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_ABANDONED -> 1 << Operation_CANCEL : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CONFIRM -> 1 << Operation_TRY | 1 << Operation_CONFIRM : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> 1 << Operation_ACTION : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> 1 << Operation_COMPENSATION : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> 1 << Operation_ACTION : ( \
  0))))))))))

#define FENCE_ANSWER_REACQUIRING(kind, state, event) ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_NOTHING && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_HELD && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_CONFIRMED && (event) == Event_CANCEL -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_CANCELLED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (kind) == Kind_TCC && (state) == State_EXPIRED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_NOTHING && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_HELD && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_REFUSED : ( \
  (kind) == Kind_COMPENSABLE && (state) == State_CANCELLED && (event) == Event_COMPENSATION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_CHECK && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_CHECK && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_NOTHING && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CONFIRMED && (event) == Event_ACTION -> Answer_SUCCEEDED : ( \
  (kind) == Kind_RETRYABLE && (state) == State_CANCELLED && (event) == Event_ACTION -> Answer_REFUSED : ( \
  NONE)))))))))))))))))))))))))))
