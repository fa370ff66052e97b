"""Short documents with their kinds, invented for the prompts: three of each kind, in different dress.

A model that sees one or two solved examples like the document before it answers far better than one that is only told
the rules; ``prompts.nearest`` picks them. None of these is among the documents of the example.
"""

from __future__ import annotations

from typing import NamedTuple

from .schemas import Kind


class Sample(NamedTuple):
    """A solved example: the text of a document, and its kind."""

    kind: Kind
    text: str


SAMPLES = (
    Sample(
        Kind.INVOICE,
        """\
Larchmont Office Supplies Ltd
INVOICE 20931
Bill to: Pemberton Dental Care
Invoice date | 4 June 2023
Due date | 4 July 2023
Description | Qty | Unit price | Amount
Printer paper A4 | 10 | 4.20 | 42.00
Net amount | GBP 42.00
VAT 20 % | GBP 8.40
Total due | GBP 50.40
Please transfer the total by the due date. IBAN GB00 1111 2222.""",
    ),
    Sample(
        Kind.CONTRACT,
        """\
CONSULTING AGREEMENT
This Agreement is made between Oakridge Systems Inc. (the "Company") and Paul Verne (the "Consultant").
Effective date: 1 May 2023
Term: 12 months
1. Services. The Consultant shall advise the Company on network design.
2. Fees. The Company shall pay a monthly fee.
3. Confidentiality
4. Termination
5. Governing law. This Agreement is governed by the laws of Ohio.
Signed""",
    ),
    Sample(
        Kind.TICKET,
        """\
From: Laura Simmons <laura@simmons.example>
To: support@brightbackup.example
Subject: Backup stops at 80 percent, please help
Hello, since yesterday my BrightBackup Home stops at 80 percent with error 5501. I restarted it twice, without
success. Can you please tell me what to do? My customer number is 5521.
Thank you, Laura""",
    ),
    Sample(
        Kind.RESUME,
        """\
Daniel Foster
Software Tester
Manchester, UK | daniel.foster@mail.example | +44 161 555 0111
Profile
Tester with six years of experience in mobile banking.
Experience
2019 - present | Bluebird Bank | Test lead
2016 - 2019 | Quill Software | Tester
Education
BSc Computer Science, University of Hull, 2016
Skills
Python, SQL, Selenium
Languages
English (native), French (B1)""",
    ),
    Sample(
        Kind.MINUTES,
        """\
Hillside Tennis Club
Minutes of the committee meeting
Date: 4 May 2023, 19:00
Present: Ann Hill (chair), Ben Ray, Carla Diaz
Apologies: Tim Moss
1. Minutes of the last meeting were approved.
2. Treasurer's report. The balance is 4,120 pounds.
3. Courts. It was agreed to repair court 2.
Actions: Ben Ray to get quotations.
Next meeting: 1 June 2023""",
    ),
    Sample(
        Kind.INCIDENT,
        """\
Incident report IR-17
Date of incident | 2 May 2023
Affected system | Mail server
Severity | High
Duration | 2 hours
Summary: The mail server was down for two hours because the disk was full.
Timeline: 09:10 alarm; 09:40 engineer on site; 11:05 service restored.
Root cause: old logs were never deleted.
Corrective actions: rotate logs daily; add an alarm at 80 percent.""",
    ),
    Sample(
        Kind.RESEARCH,
        """\
Effects of blue light on the growth of green algae in closed reactors
Keiko Tan, Lars Berg and Ana Ruiz
Department of Biology, University of Oslo
Abstract. Background: light is the main cost of algae reactors. Methods: we grew 36 cultures under four
colours of light for 30 days. Results: growth was 12 percent higher under blue light (p < 0.05). Conclusions:
blue light saves energy.
Keywords: algae, light, bioreactor""",
    ),
    Sample(
        Kind.PRESS,
        """\
FOR IMMEDIATE RELEASE
Solaro unveils a family car with a solar roof
LYON, 3 May 2023 - Solaro today announced its first family car with a solar roof. "We want people to forget
the charging cable," said Ana Petit, chief executive of Solaro.
About Solaro
Solaro was founded in 2015 and employs 300 people.
Press contact: press@solaro.example
ENDS""",
    ),
    Sample(
        Kind.INCIDENT,
        """\
# Post-mortem: search was unavailable on 14 June 2023
Severity: SEV-2
Duration: 38 minutes
Impact: 12 percent of the searches failed.
Timeline (UTC): 13:02 deployment; 13:05 error rate rises; 13:40 rollback complete.
Root cause: a missing index.
What went well: the alarm fired at once.
Action items: test migrations on a copy.""",
    ),
    Sample(
        Kind.RESUME,
        """\
CHLOE MARTIN
Primary school teacher
Contact: chloe.martin@mail.example, Dublin
Summary
Teacher with eleven years in the classroom, four of them as deputy head.
Employment history
Deputy Head, St Brigid's School (2019 to today)
Class teacher, Elm Park School (2012 to 2019)
Education and training
Bachelor of Education, 2012
References on request""",
    ),
    Sample(
        Kind.CONTRACT,
        """\
TENANCY AGREEMENT
between Maple Homes GmbH (hereinafter "the Landlord") and Omar Said (hereinafter "the Tenant")
The parties agree as follows:
1. PREMISES. The Landlord lets the flat at 5 Park Lane.
2. TERM. The tenancy commences on 1 March 2023 for a period of 24 months.
3. RENT. The Tenant shall pay EUR 850 a month.
4. LAW. The law of Germany applies.""",
    ),
    Sample(
        Kind.MINUTES,
        """\
Team Falcon weekly meeting notes
- Date: 2023-05-09
- Attendees: Priya, Sam, Lou
- Facilitator: Lou
Discussion: release date, open bugs, holiday plan.
Decisions: release on Friday.
Action items
Who | What | By
Sam | Fix the login page | 2023-05-11
Next meeting: 2023-05-16""",
    ),
    Sample(
        Kind.PRESS,
        """\
Greenford Theatre presents its autumn season
Greenford, 21 August 2023 -- The Greenford Theatre announced today a season of nine plays, four of them new.
"We are opening our doors to everyone," said director Hugo Lane. Tickets go on sale on 1 September.
Notes to editors: photographs are available.
Media contact: Sara Bell, media@greenford.example""",
    ),
    Sample(
        Kind.TICKET,
        """\
Ticket 4410 | Status: open
Customer: Igor Novak
Product: PhotoBox Pro
Priority: low
Subject: Cannot print in colour
Igor wrote: Hi, the pictures come out grey since the update. It is not urgent. I tried another cable.
Agent wrote: Thank you for your message. Could you send us the settings page?""",
    ),
    Sample(
        Kind.INVOICE,
        """\
RIVERSIDE GARDEN SERVICES
Tax invoice no. 118
To: Mr and Mrs Cole
Lawn and hedge work in April, 6 hours at 30.00: 180.00
Plants: 45.50
Subtotal 225.50
VAT 45.10
Amount payable 270.60
Payment terms: 14 days. Bank transfer to account 1234 5678.""",
    ),
    Sample(
        Kind.RESEARCH,
        """\
A randomised trial of walking groups for older adults
Authors: M. Keller, J. Osei
Objective. To test whether walking groups improve balance. Participants. 210 adults over 65. Main outcome.
Balance score at 12 weeks. Results. The score rose by 3.1 points (95 percent confidence interval 1.2 to 5.0).
Conclusions. Walking groups help. Limitations. One city only.""",
    ),
    Sample(
        Kind.RESUME,
        """\
Curriculum vitae
Name: Helena Brandt
Date of birth: 4 March 1988
Profession: Landscape gardener
Contact: helena.brandt@mail.example, Kiel
Career
since 2018: head gardener at the castle park of Eutin, responsible for eight people
2010 - 2018: gardener, Nordgrün nursery
Qualifications: master craftsman's certificate 2016; tree climbing; driving licence
Interests: choir, beekeeping""",
    ),
    Sample(
        Kind.MINUTES,
        """\
Riverbank Residents' Association
Notes of the meeting of 3 October 2023
In attendance: Mrs Hall (chair), Mr Iqbal, Ms Brown; not present: Mr Frost
Parking. Mr Iqbal reported on his talk with the council. Several members asked for a sign.
Street party. It was agreed to hold it in June. Ms Brown coordinates the stalls.
To do: Mrs Hall writes to the council.
Closed at 8.15 pm. We meet again on 7 November.""",
    ),
    Sample(
        Kind.RESEARCH,
        """\
Does remote work lower rents? Evidence from 40 cities
Ingrid Falk and Tomas Novy, Institute of Economics, Brno
Working paper, received 2 May 2023, revised 9 August 2023
Summary
We compare rents in districts with many and with few office workers before and after 2020. We find that
rents fell by 4 percent (standard error 1.1) where remote work is common. The estimates hold with fixed effects.
1 Introduction
The literature on cities assumes that people live near their work. Our data suggest otherwise.
References""",
    ),
    Sample(
        Kind.INVOICE,
        """\
Receipt no. 2023-0441
Harbour Web Design GmbH, VAT DE123456789
Billed to | Kaffeehaus Sommer
Subscription, business plan, May 2023 | 39.00
Extra storage | 6.00
Amount due | EUR 45.00
Due | 15 May 2023
We will charge the card on file. Questions about this bill? billing@harbour.example""",
    ),
    Sample(
        Kind.CONTRACT,
        """\
Terms of engagement
Parties: (1) Stonebridge School ("the Client"); and (2) Jolly Catering Co ("the Supplier").
The Supplier will serve lunch on school days. This contract begins on 1 September 2023 and lasts for one year;
either party may end it with three months' notice. The Client pays 3.20 pounds a meal, monthly in arrears.
Liability, insurance, confidentiality, force majeure. English law applies.
Signed on behalf of both parties""",
    ),
    Sample(
        Kind.TICKET,
        """\
Web form, 12 June 2023
Customer: Sofie Lund
Order: 77-1203, garden table
Message: Good morning, my table was promised for last week and has still not arrived. Nobody answers the phone.
I am very disappointed. Please tell me where my delivery is, or give me my money back.
Agent: I am sorry to hear that, Sofie. I have asked the carrier and will call you tomorrow.""",
    ),
    Sample(
        Kind.INCIDENT,
        """\
ACCIDENT AND NEAR-MISS FORM
When: 6 March 2023, 07:50
Where: loading bay 2
What happened: a driver slipped on wet steps and hurt his wrist. First aid was given at once.
Why it happened: the gutter above the steps leaks and the grit box was empty.
Injury: minor. Witnesses: two.
Measures to prevent it happening again: gutter repaired; grit box checked each morning. Reported by: shift leader""",
    ),
    Sample(
        Kind.PRESS,
        """\
Almond Airlines to serve Split and Zadar from next spring
DUBLIN, 9 October 2023 - Almond Airlines will add two routes to its summer timetable, the company said on Monday.
Flights leave three times a week and cost from 49 euros. "Our passengers asked for the sea," said managing director
Kate Byrne. The airline was founded in 1998, employs 600 people and carried 2 million passengers last year.
For interviews and pictures: news@almond.example""",
    ),
)
