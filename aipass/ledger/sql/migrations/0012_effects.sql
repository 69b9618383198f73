-- Version 12: the side effect of an action as data, its name and its arguments. Up to now it followed from the action's type.
ALTER TABLE actions ADD COLUMN effect TEXT;
UPDATE actions SET effect = json_object('name',
    CASE type
        WHEN 'Deliver' THEN 'outbox.deliver'
        WHEN 'Reject' THEN 'inbox.reject'
        WHEN 'Dispatch' THEN 'inbox.take'
        WHEN 'Steer' THEN 'plans.read'
        WHEN 'OpenPr' THEN 'git.open'
        WHEN 'MergePr' THEN 'git.merge'
        WHEN 'ClosePr' THEN 'git.close'
        WHEN 'Reload' THEN 'reload.read'
    END, 'arguments', json(payload))
WHERE state = 'pending';
