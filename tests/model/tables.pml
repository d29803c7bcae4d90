/* Written by `python -m tests.model --write-tables` from app/protocol/kinds.py, app/protocol/values.py and
 * participants/holdfast/fence/table.py; a test compares it with them. Change it there, never here. */

#define NONE 0

#define Kind_TCC 1

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
#define Event_TOLD_CONFIRM 4
#define Event_TOLD_CANCEL 5
#define Event_ABANDONED 6

#define READY(kind) ( \
  (kind) == Kind_TCC -> BranchPhase_HELD : ( \
  NONE))

#define FOLLOWS(kind, decision, phase) ( \
  (kind) == Kind_TCC && (decision) == Decision_CONFIRM && (phase) == BranchPhase_HELD -> BranchPhase_CONFIRMING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_PENDING -> BranchPhase_CANCELLED : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_HELD -> BranchPhase_CANCELLING : ( \
  (kind) == Kind_TCC && (decision) == Decision_CANCEL && (phase) == BranchPhase_REFUSED -> BranchPhase_CANCELLING : ( \
  NONE))))))

#define ASKS(kind, phase) ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_PENDING -> Operation_TRY : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_TRYING -> Operation_TRY : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_CONFIRMING -> Operation_CONFIRM : ( \
  (kind) == Kind_TCC && (phase) == BranchPhase_CANCELLING -> Operation_CANCEL : ( \
  NONE)))))

#define ANSWERED(operation, answer) ( \
  (operation) == Operation_TRY && (answer) == Answer_SUCCEEDED -> BranchPhase_HELD : ( \
  (operation) == Operation_TRY && (answer) == Answer_REFUSED -> BranchPhase_REFUSED : ( \
  (operation) == Operation_TRY && (answer) == Answer_UNANSWERED -> BranchPhase_TRYING : ( \
  (operation) == Operation_CONFIRM && (answer) == Answer_SUCCEEDED -> BranchPhase_CONFIRMED : ( \
  (operation) == Operation_CONFIRM && (answer) == Answer_REFUSED -> BranchPhase_CONFIRMING : ( \
  (operation) == Operation_CONFIRM && (answer) == Answer_UNANSWERED -> BranchPhase_CONFIRMING : ( \
  (operation) == Operation_CANCEL && (answer) == Answer_SUCCEEDED -> BranchPhase_CANCELLED : ( \
  (operation) == Operation_CANCEL && (answer) == Answer_REFUSED -> BranchPhase_CANCELLING : ( \
  (operation) == Operation_CANCEL && (answer) == Answer_UNANSWERED -> BranchPhase_CANCELLING : ( \
  NONE))))))))))

#define IS_FINAL(phase) ( \
  (phase) == BranchPhase_CONFIRMED -> 1 : ( \
  (phase) == BranchPhase_CANCELLED -> 1 : ( \
  0)))

#define FENCE_ASKS(state) ( \
  (state) == State_HELD -> 1 : ( \
  0))

#define FENCE_THEN(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> State_HELD : ( \
  (state) == State_NOTHING && (event) == Event_CONFIRM -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_NOTHING && (event) == Event_TOLD_CONFIRM -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_TOLD_CANCEL -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_ABANDONED -> State_NOTHING : ( \
  (state) == State_HELD && (event) == Event_TRY -> State_HELD : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_HELD && (event) == Event_TOLD_CONFIRM -> State_HELD : ( \
  (state) == State_HELD && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (state) == State_HELD && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (state) == State_CONFIRMED && (event) == Event_TRY -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_CANCEL -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_TOLD_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_TOLD_CANCEL -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_ABANDONED -> State_CONFIRMED : ( \
  (state) == State_CANCELLED && (event) == Event_TRY -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_CONFIRM -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_TOLD_CONFIRM -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_ABANDONED -> State_CANCELLED : ( \
  (state) == State_EXPIRED && (event) == Event_TRY -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_CONFIRM -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_CANCEL -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_TOLD_CONFIRM -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_TOLD_CANCEL -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  NONE)))))))))))))))))))))))))))))))

#define FENCE_RUNS(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> 1 << Operation_TRY : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> 1 << Operation_CONFIRM : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> 1 << Operation_CANCEL : ( \
  (state) == State_HELD && (event) == Event_TOLD_CANCEL -> 1 << Operation_CANCEL : ( \
  (state) == State_HELD && (event) == Event_ABANDONED -> 1 << Operation_CANCEL : ( \
  0))))))

#define FENCE_ANSWER(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_NOTHING && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (state) == State_NOTHING && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_CANCEL -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_EXPIRED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (state) == State_EXPIRED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (state) == State_EXPIRED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  NONE))))))))))))))))

#define FENCE_THEN_REACQUIRING(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> State_HELD : ( \
  (state) == State_NOTHING && (event) == Event_CONFIRM -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_NOTHING && (event) == Event_TOLD_CONFIRM -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_TOLD_CANCEL -> State_NOTHING : ( \
  (state) == State_NOTHING && (event) == Event_ABANDONED -> State_NOTHING : ( \
  (state) == State_HELD && (event) == Event_TRY -> State_HELD : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_HELD && (event) == Event_TOLD_CONFIRM -> State_HELD : ( \
  (state) == State_HELD && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (state) == State_HELD && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  (state) == State_CONFIRMED && (event) == Event_TRY -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_CANCEL -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_TOLD_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_TOLD_CANCEL -> State_CONFIRMED : ( \
  (state) == State_CONFIRMED && (event) == Event_ABANDONED -> State_CONFIRMED : ( \
  (state) == State_CANCELLED && (event) == Event_TRY -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_CONFIRM -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_CANCEL -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_TOLD_CONFIRM -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_TOLD_CANCEL -> State_CANCELLED : ( \
  (state) == State_CANCELLED && (event) == Event_ABANDONED -> State_CANCELLED : ( \
  (state) == State_EXPIRED && (event) == Event_TRY -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_CONFIRM -> State_CONFIRMED : ( \
  (state) == State_EXPIRED && (event) == Event_CANCEL -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_TOLD_CONFIRM -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_TOLD_CANCEL -> State_EXPIRED : ( \
  (state) == State_EXPIRED && (event) == Event_ABANDONED -> State_EXPIRED : ( \
  NONE)))))))))))))))))))))))))))))))

#define FENCE_RUNS_REACQUIRING(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> 1 << Operation_TRY : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> 1 << Operation_CONFIRM : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> 1 << Operation_CANCEL : ( \
  (state) == State_HELD && (event) == Event_TOLD_CANCEL -> 1 << Operation_CANCEL : ( \
  (state) == State_HELD && (event) == Event_ABANDONED -> 1 << Operation_CANCEL : ( \
  (state) == State_EXPIRED && (event) == Event_CONFIRM -> 1 << Operation_TRY | 1 << Operation_CONFIRM : ( \
  0)))))))

#define FENCE_ANSWER_REACQUIRING(state, event) ( \
  (state) == State_NOTHING && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_NOTHING && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (state) == State_NOTHING && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (state) == State_HELD && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_TRY -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (state) == State_CONFIRMED && (event) == Event_CANCEL -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_CONFIRM -> Answer_REFUSED : ( \
  (state) == State_CANCELLED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  (state) == State_EXPIRED && (event) == Event_TRY -> Answer_REFUSED : ( \
  (state) == State_EXPIRED && (event) == Event_CONFIRM -> Answer_SUCCEEDED : ( \
  (state) == State_EXPIRED && (event) == Event_CANCEL -> Answer_SUCCEEDED : ( \
  NONE))))))))))))))))
